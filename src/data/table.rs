//! CSV, TSV and JSON Lines with named columns, read row by row and written back with columns added.
//!
//! All three are read as lines of UTF-8, with or without a byte order mark, ending in LF or CRLF; blank lines are
//! skipped. A record (a row with its line breaks) of more than 16 MiB is refused before it is held in memory.
//!
//! - **CSV**: RFC 4180. A field that begins with `"` runs to the closing quote, over commas and line breaks, with `""`
//!   for a quote; a quote elsewhere in a field is text. Every row has as many fields as the header.
//! - **TSV**: as IANA registers it: no quoting at all, a field is what stands between tabs. Files with bare quotes
//!   (`"Great" film`) are far more common than quoted ones, and read as quoted they would silently lose rows. A field
//!   with a tab or a line break in it needs CSV.
//! - **JSON Lines**: an object on each line; the text is a string, the label a string, a number, `true` or `false`.
//!
//! [`annotate`] writes each row back byte for byte and only inserts what is added. That is why records are split
//! here and not by a CSV library, which gives fields but not the bytes they came from, reads an unclosed quote to the
//! end of the file without a word, and has no limit to a record.

use super::text::{BOM, json_message, quoted};
use crate::error::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// How a file's rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, RFC 4180 quoting, a header line.
    Csv,
    /// Tab-separated without quoting, a header line.
    Tsv,
    /// A JSON object on each line.
    Jsonl,
}

impl Format {
    /// From the file name's extension: `.csv`, `.tsv` or `.tab`, `.jsonl` or `.ndjson`, in any case.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Ok(Format::Csv),
            "tsv" | "tab" => Ok(Format::Tsv),
            "jsonl" | "ndjson" => Ok(Format::Jsonl),
            _ => Err(Error::format(
                path,
                "",
                "the file name does not tell how rows are written; expected it to end in .csv, .tsv or .jsonl",
            )),
        }
    }
}

/// One labelled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledText {
    /// The raw text.
    pub text: String,
    /// The label as it stands in the file, without white space around it.
    pub label: String,
    /// 1-based line in the file where the row begins, for messages.
    pub line: u64,
}

/// Reads every row's text and label.
///
/// An empty text is a row like any other; an empty label and a file without rows are errors.
pub fn read_labelled(path: &Path, text_column: &str, label_column: &str) -> Result<Vec<LabelledText>> {
    if text_column == label_column {
        return Err(Error::usage(
            "--label-column",
            format!("the text and the label cannot both be column {}; name two columns", quoted(text_column)),
        ));
    }
    let mut table = Table::open(path, text_column, Some(label_column), &[])?;
    let mut rows = Vec::new();
    while let Some(row) = table.next()? {
        let label = row.label.trim();
        if label.is_empty() {
            return Err(Error::format(
                path,
                format!("line {}", row.line),
                format!(
                    "the label in column {} is empty; give the row a label or remove it",
                    quoted(label_column)
                ),
            ));
        }
        rows.push(LabelledText { label: label.to_owned(), text: row.text, line: row.line });
    }
    if rows.is_empty() {
        return Err(table.no_rows());
    }
    Ok(rows)
}

/// One value of an added column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text; a string in JSON.
    Text(String),
    /// A number; a JSON number. What is not finite becomes `null` in JSON and an empty field elsewhere.
    Number(f64),
}

impl From<f32> for Value {
    /// The f64 that is written with the same digits: 0.1f32 as 0.1 and not as 0.10000000149011612.
    fn from(number: f32) -> Self {
        Value::Number(number.to_string().parse().unwrap_or(f64::from(number)))
    }
}

/// From texts to one value for each text and added column; what [`annotate`] asks for each batch of rows.
pub type Answer<'a> = dyn FnMut(&[String]) -> Result<Vec<Vec<Value>>> + 'a;

/// Rows that [`annotate`] hands over at a time, unless their texts are long.
const BATCH_ROWS: usize = 256;
/// Bytes of records after which a batch is handed over, however few rows they are.
const BATCH_BYTES: usize = 4 << 20;

/// Reads `input` row by row, hands the rows' texts (up to 256 at a time) to `answer`, and writes `output` in the same
/// format: each row's bytes as they are, with the answers' values in `added` columns at the end. Gives the number of
/// rows.
///
/// `answer` gives for each text one value for each added column. The rows go to a file beside `output` that takes
/// its name at the end, so that an error leaves `output` as it was; `output` may be `input`.
pub fn annotate(
    input: &Path,
    output: &Path,
    text_column: &str,
    added: &[String],
    answer: &mut Answer<'_>,
) -> Result<u64> {
    let mut table = Table::open(input, text_column, None, added)?;
    let format = table.format;
    if Format::of(output).is_ok_and(|wanted| wanted != format) {
        return Err(Error::format(
            output,
            "",
            format!("rows are written as they were read; expected the extension of {}", input.display()),
        ));
    }
    let mut replacement = Replacement::create(output)?;
    replacement.write(&table.head(added)?)?;

    let mut total = 0;
    loop {
        let (mut raws, mut texts, mut bytes) = (Vec::new(), Vec::new(), 0);
        while texts.len() < BATCH_ROWS && bytes < BATCH_BYTES {
            let Some(row) = table.next()? else { break };
            bytes += row.raw.len();
            raws.push(row.raw);
            texts.push(row.text);
        }
        if texts.is_empty() {
            break;
        }
        let answers = answer(&texts)?;
        if answers.len() != texts.len() || answers.iter().any(|values| values.len() != added.len()) {
            return Err(Error::Shape {
                op: "annotate",
                what: "answers",
                expected: format!("{} rows of {} values", texts.len(), added.len()),
                found: format!(
                    "{} rows of {:?} values",
                    answers.len(),
                    answers.iter().map(Vec::len).find(|&values| values != added.len()).unwrap_or(added.len())
                ),
            });
        }
        for (raw, values) in raws.iter().zip(&answers) {
            replacement.write(&table.extended(raw, added, values)?)?;
        }
        total += texts.len() as u64;
    }
    if total == 0 {
        return Err(table.no_rows());
    }
    // Closed first: where output is input, some systems cannot replace an open file.
    drop(table);
    replacement.finish()?;
    Ok(total)
}

/// A record of more bytes is refused.
const MAX_RECORD: usize = 16 << 20;
/// A header of more columns is refused.
const MAX_COLUMNS: usize = 16_384;
/// Column names that a message lists.
const LISTED: usize = 20;

/// A file's lines, counted, and joined to records.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// Lines read so far.
    count: u64,
}

impl Lines {
    fn error(&self, line: u64, message: impl Into<String>) -> Error {
        Error::format(&self.path, format!("line {line}"), message)
    }

    /// Appends the next line with its line break; false at the end of the file. `first` is where the record began.
    fn append(&mut self, record: &mut Vec<u8>, first: u64) -> Result<bool> {
        let before = record.len();
        loop {
            let available = match self.reader.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.map_err(Error::io(&self.path, "read"))?,
            };
            let line_break = available.iter().position(|&byte| byte == b'\n');
            let taken = line_break.map_or(available.len(), |at| at + 1);
            if record.len() + taken > MAX_RECORD {
                return Err(self.error(
                    first,
                    format!(
                        "the row that begins here is longer than {} MiB; shorten it, or check for a quote that is \
                         never closed",
                        MAX_RECORD >> 20
                    ),
                ));
            }
            record.extend_from_slice(&available[..taken]);
            self.reader.consume(taken);
            if line_break.is_some() || taken == 0 {
                break;
            }
        }
        let any = record.len() > before;
        self.count += u64::from(any);
        Ok(any)
    }

    /// The next record that is not blank, with its line break, and the line where it begins.
    fn record(&mut self, format: Format) -> Result<Option<(String, u64)>> {
        loop {
            let mut record = Vec::new();
            let first = self.count + 1;
            if !self.append(&mut record, first)? {
                return Ok(None);
            }
            if format == Format::Csv {
                let mut quotes = Quotes::FieldStart;
                let mut scanned = 0;
                loop {
                    quotes = record[scanned..].iter().fold(quotes, Quotes::next);
                    scanned = record.len();
                    if quotes != Quotes::Inside {
                        break;
                    }
                    if !self.append(&mut record, first)? {
                        return Err(self.error(
                            first,
                            "a quote opens a field in the row that begins here and is never closed; close it, or double \
                             every quote that is part of a quoted text",
                        ));
                    }
                }
            }
            let record = String::from_utf8(record).map_err(|error| {
                let good = error.utf8_error().valid_up_to();
                let breaks = error.as_bytes()[..good].iter().filter(|&&byte| byte == b'\n').count();
                self.error(
                    first + breaks as u64,
                    format!(
                        "the byte 0x{:02X} is not UTF-8; save the file as UTF-8",
                        error.as_bytes().get(good).copied().unwrap_or_default()
                    ),
                )
            })?;
            let blank = match format {
                Format::Jsonl => record.trim().is_empty(),
                Format::Csv | Format::Tsv => content(&record).is_empty(),
            };
            if !blank {
                return Ok(Some((record, first)));
            }
        }
    }
}

/// Where a scan of CSV bytes stands with regard to quotes.
#[derive(Clone, Copy, PartialEq)]
enum Quotes {
    FieldStart,
    /// In a field that does not begin with a quote, or behind a closing quote.
    Outside,
    /// In a quoted field: a line break belongs to it.
    Inside,
    /// Behind a quote in a quoted field: closing, unless another one follows.
    Closing,
}

impl Quotes {
    fn next(self, byte: &u8) -> Self {
        match (self, byte) {
            (Quotes::FieldStart, b'"') | (Quotes::Closing, b'"') => Quotes::Inside,
            (Quotes::Inside, b'"') => Quotes::Closing,
            (Quotes::Inside, _) => Quotes::Inside,
            (_, b',') => Quotes::FieldStart,
            _ => Quotes::Outside,
        }
    }
}

/// A record without its line break.
fn content(record: &str) -> &str {
    let content = record.strip_suffix('\n').unwrap_or(record);
    content.strip_suffix('\r').unwrap_or(content)
}

/// The line break behind `content`; empty at the end of a file that lacks the last one.
fn line_break(record: &str) -> &str {
    &record[content(record).len()..]
}

/// The fields of a CSV record's content whose quotes are closed.
struct CsvFields<'a> {
    rest: Option<&'a str>,
}

impl<'a> Iterator for CsvFields<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Cow<'a, str>> {
        let rest = self.rest.take()?;
        let to_comma = |from: &'a str| match from.split_once(',') {
            Some((field, rest)) => (field, Some(rest)),
            None => (from, None),
        };
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, rest) = to_comma(rest);
            self.rest = rest;
            return Some(Cow::Borrowed(field));
        };
        let mut field = String::new();
        while let Some((part, behind)) = quoted.split_once('"') {
            field.push_str(part);
            let Some(doubled) = behind.strip_prefix('"') else {
                // What stands between the closing quote and the comma is kept, as other readers do.
                let (tail, rest) = to_comma(behind);
                field.push_str(tail);
                self.rest = rest;
                return Some(Cow::Owned(field));
            };
            field.push('"');
            quoted = doubled;
        }
        field.push_str(quoted);
        Some(Cow::Owned(field))
    }
}

/// The fields of a record's content, in CSV or TSV.
fn fields(content: &str, format: Format) -> Box<dyn Iterator<Item = Cow<'_, str>> + '_> {
    match format {
        Format::Csv => Box::new(CsvFields { rest: Some(content) }),
        Format::Tsv | Format::Jsonl => Box::new(content.split('\t').map(Cow::Borrowed)),
    }
}

/// A row of a [`Table`].
struct Row {
    /// The record as it stands in the file, with its line break.
    raw: String,
    text: String,
    /// Empty where no label column is asked for.
    label: String,
    line: u64,
}

/// A file with its header read.
struct Table {
    lines: Lines,
    format: Format,
    /// What stands before the rows: a byte order mark and the header record, or nothing.
    head: String,
    text_column: String,
    label_column: Option<String>,
    /// Names that no column may have.
    added: Vec<String>,
    /// Of CSV and TSV: the columns, and which hold text and label.
    columns: usize,
    text_at: usize,
    label_at: Option<usize>,
}

impl Table {
    fn open(path: &Path, text_column: &str, label_column: Option<&str>, added: &[String]) -> Result<Self> {
        let format = Format::of(path)?;
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let mut lines = Lines { path: path.to_path_buf(), reader: BufReader::new(file), count: 0 };
        let mut head = String::new();
        if lines.reader.fill_buf().map_err(Error::io(path, "read"))?.starts_with(BOM) {
            lines.reader.consume(BOM.len());
            head.push('\u{feff}');
        }
        let mut table = Self {
            lines,
            format,
            head,
            text_column: text_column.to_owned(),
            label_column: label_column.map(str::to_owned),
            added: added.to_vec(),
            columns: 0,
            text_at: 0,
            label_at: None,
        };
        if format != Format::Jsonl {
            table.read_header()?;
        }
        Ok(table)
    }

    fn no_rows(&self) -> Error {
        let expected = match self.format {
            Format::Jsonl => "an object on each line",
            Format::Csv | Format::Tsv => "a header line with the columns' names and a line for each row",
        };
        Error::format(&self.lines.path, "", format!("the file has no rows; expected {expected}"))
    }

    fn read_header(&mut self) -> Result<()> {
        let Some((header, line)) = self.lines.record(self.format)? else { return Err(self.no_rows()) };
        let names: Vec<Cow<str>> = fields(content(&header), self.format).take(MAX_COLUMNS + 1).collect();
        if names.len() > MAX_COLUMNS {
            let message =
                format!("the header names more than {MAX_COLUMNS} columns; expected a header and text rows");
            return Err(self.lines.error(line, message));
        }
        if let Some(clash) = names.iter().find(|name| self.added.iter().any(|added| added == *name)) {
            return Err(self.clash(line, clash));
        }
        let find = |wanted: &str, flag: &str| {
            let mut at = names.iter().enumerate().filter(|(_, name)| *name == wanted).map(|(at, _)| at);
            match (at.next(), at.next()) {
                (Some(at), None) => Ok(at),
                (Some(_), Some(_)) => {
                    let message = format!("two columns are called {}; rename one of them", quoted(wanted));
                    Err(self.lines.error(line, message))
                }
                (None, _) => {
                    let shown = names.iter().take(LISTED).map(Cow::as_ref);
                    Err(self.lines.error(line, no_column(wanted, shown, names.len() > LISTED, flag)))
                }
            }
        };
        self.text_at = find(&self.text_column, "--text-column")?;
        self.label_at = match &self.label_column {
            Some(column) => Some(find(column, "--label-column")?),
            None => None,
        };
        self.columns = names.len();
        drop(names);
        self.head.push_str(&header);
        Ok(())
    }

    fn clash(&self, line: u64, name: &str) -> Error {
        let message = format!(
            "a column is called {} already, and a column of that name is to be added; rename or remove it",
            quoted(name)
        );
        self.lines.error(line, message)
    }

    fn next(&mut self) -> Result<Option<Row>> {
        let Some((raw, line)) = self.lines.record(self.format)? else { return Ok(None) };
        let (text, label) = match self.format {
            Format::Jsonl => self.object(&raw, line)?,
            Format::Csv | Format::Tsv => self.fields(&raw, line)?,
        };
        Ok(Some(Row { raw, text, label, line }))
    }

    /// Text and label of a CSV or TSV record.
    fn fields(&self, raw: &str, line: u64) -> Result<(String, String)> {
        let (mut text, mut label, mut count) = (String::new(), String::new(), 0);
        // One more than the header has tells enough.
        for field in fields(content(raw), self.format).take(self.columns + 1) {
            if count == self.text_at {
                text = field.into_owned();
            } else if Some(count) == self.label_at {
                label = field.into_owned();
            }
            count += 1;
        }
        if count == self.columns {
            return Ok((text, label));
        }
        let more = if count > self.columns { "more than " } else { "" };
        let found = count.min(self.columns);
        let advice = match self.format {
            Format::Csv => "put a text that holds commas or line breaks in double quotes",
            Format::Tsv | Format::Jsonl => {
                "a tab-separated text cannot hold a tab or a line break, even in quotes: remove it or use CSV"
            }
        };
        let fields = if found == 1 { "field" } else { "fields" };
        let message = format!(
            "the row has {more}{found} {fields}, expected {} as in the header; {advice}",
            self.columns
        );
        Err(self.lines.error(line, message))
    }

    /// Text and label of a JSON object.
    fn object(&self, raw: &str, line: u64) -> Result<(String, String)> {
        let mut json = serde_json::Deserializer::from_str(raw);
        let object = json.deserialize_map(ObjectVisitor { table: self });
        let object = object.and_then(|object| json.end().map(|()| object)).map_err(|error| {
            let message = format!(
                "{} (column {}); expected a JSON object with the text in {}",
                json_message(&error),
                error.column(),
                quoted(&self.text_column)
            );
            self.lines.error(line, message)
        })?;
        if let Some(name) = &object.clash {
            return Err(self.clash(line, name));
        }
        let missing = |wanted: &str, flag| {
            let shown = object.names.iter().take(LISTED).map(String::as_str);
            self.lines.error(line, no_column(wanted, shown, object.names.len() > LISTED, flag))
        };
        let text = object.text.ok_or_else(|| missing(&self.text_column, "--text-column"))?;
        let label = match (&self.label_column, object.label) {
            (None, _) => String::new(),
            (Some(_), Some(label)) => label,
            (Some(column), None) => return Err(missing(column, "--label-column")),
        };
        Ok((text, label))
    }

    /// What stands before the rows, with the added columns' names.
    fn head(&self, added: &[String]) -> Result<String> {
        if self.format == Format::Jsonl {
            return Ok(self.head.clone());
        }
        let names: Vec<Value> = added.iter().cloned().map(Value::Text).collect();
        self.extended(&self.head, added, &names)
    }

    /// A record with values at its end.
    fn extended(&self, raw: &str, added: &[String], values: &[Value]) -> Result<String> {
        let mut row = content(raw).to_owned();
        match self.format {
            Format::Csv => values.iter().for_each(|value| {
                row.push(',');
                match value {
                    Value::Text(text) if text.contains(['"', ',', '\n', '\r']) => {
                        row.push('"');
                        row.push_str(&text.replace('"', "\"\""));
                        row.push('"');
                    }
                    value => row.push_str(&plain(value)),
                }
            }),
            Format::Tsv => {
                for value in values {
                    let value = plain(value);
                    if value.contains(['\t', '\n', '\r']) {
                        return Err(Error::Failed(format!(
                            "the value {} holds a tab or a line break, which a tab-separated file cannot; use CSV",
                            quoted(&value)
                        )));
                    }
                    row.push('\t');
                    row.push_str(&value);
                }
            }
            Format::Jsonl => {
                // The line was read as an object that has the text's key, so a brace ends it and a comma continues it.
                row.truncate(row.trim_end().len().saturating_sub(1));
                row.truncate(row.trim_end().len());
                for (name, value) in added.iter().zip(values) {
                    let value = match value {
                        Value::Text(text) => serde_json::Value::from(text.as_str()),
                        Value::Number(number) => serde_json::Value::from(*number),
                    };
                    row.push_str(&format!(",{}:{value}", serde_json::Value::from(name.as_str())));
                }
                row.push('}');
            }
        }
        row.push_str(match (line_break(raw), line_break(&self.head)) {
            ("", "") => "\n",
            ("", head) => head,
            (own, _) => own,
        });
        Ok(row)
    }
}

/// A value where it needs no escape.
fn plain(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Text(text) => Cow::Borrowed(text),
        Value::Number(number) => {
            serde_json::Number::from_f64(*number).map(|n| n.to_string()).unwrap_or_default().into()
        }
    }
}

/// The message for a column that is not there.
fn no_column<'a>(wanted: &str, found: impl Iterator<Item = &'a str>, more: bool, flag: &str) -> String {
    let mut found: Vec<String> = found.map(quoted).collect();
    if more {
        found.push("…".to_owned());
    }
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    format!(
        "there is no column {}; the columns are {found}; name the right one with {flag} NAME",
        quoted(wanted)
    )
}

/// What is needed of a JSON object.
#[derive(Default)]
struct Object {
    text: Option<String>,
    label: Option<String>,
    /// The first keys, for messages; one more than are listed.
    names: Vec<String>,
    clash: Option<String>,
}

struct ObjectVisitor<'a> {
    table: &'a Table,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let Table { text_column, label_column, added, .. } = self.table;
        let mut object = Object::default();
        while let Some(name) = map.next_key::<String>()? {
            let seed = |labels| Scalar { column: &name, labels };
            let twice = if name == *text_column {
                object.text.replace(map.next_value_seed(seed(false))?).is_some()
            } else if Some(&name) == label_column.as_ref() {
                object.label.replace(map.next_value_seed(seed(true))?).is_some()
            } else {
                map.next_value::<IgnoredAny>()?;
                false
            };
            if twice {
                let message = format!("the key {} stands twice in the object", quoted(&name));
                return Err(serde::de::Error::custom(message));
            }
            if added.contains(&name) {
                object.clash = Some(name);
            } else if object.names.len() <= LISTED {
                object.names.push(name);
            }
        }
        Ok(object)
    }
}

/// Reads a text (a string) or a label (a number or a boolean as well).
struct Scalar<'a> {
    column: &'a str,
    labels: bool,
}

impl Scalar<'_> {
    fn label<E: serde::de::Error>(self, found: serde::de::Unexpected<'_>, text: String) -> Result<String, E> {
        if self.labels { Ok(text) } else { Err(E::invalid_type(found, &self)) }
    }
}

impl<'de> DeserializeSeed<'de> for Scalar<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<String, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = if self.labels { "a string, a number, true or false" } else { "a string" };
        write!(f, "{kinds} in {}", quoted(self.column))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_bool<E: serde::de::Error>(self, label: bool) -> Result<String, E> {
        self.label(serde::de::Unexpected::Bool(label), label.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, label: i64) -> Result<String, E> {
        self.label(serde::de::Unexpected::Signed(label), label.to_string())
    }

    fn visit_u64<E: serde::de::Error>(self, label: u64) -> Result<String, E> {
        self.label(serde::de::Unexpected::Unsigned(label), label.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, label: f64) -> Result<String, E> {
        // Debug keeps ".0" and turns to exponents where Display would write hundreds of zeros.
        self.label(serde::de::Unexpected::Float(label), format!("{label:?}"))
    }
}

/// A file that takes another's place once it is whole, and vanishes if it never is.
struct Replacement {
    target: PathBuf,
    temp: PathBuf,
    /// None once closed.
    file: Option<BufWriter<File>>,
}

impl Replacement {
    fn create(output: &Path) -> Result<Self> {
        let target = match std::fs::metadata(output) {
            Ok(found) if !found.is_file() => {
                return Err(Error::format(
                    output,
                    "",
                    "the rows cannot be written here: it is not a regular file; name a file that may be replaced",
                ));
            }
            // Through a link to the file itself, so that the link stays one.
            Ok(_) => output.canonicalize().map_err(Error::io(output, "find"))?,
            Err(_) => output.to_path_buf(),
        };
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temp = target.with_file_name(name);
        let file = File::create_new(&temp).map_err(Error::io(&temp, "create"))?;
        Ok(Self { target, temp, file: Some(BufWriter::new(file)) })
    }

    fn write(&mut self, rows: &str) -> Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(rows.as_bytes()).map_err(Error::io(&self.target, "write")),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<()> {
        if let Some(mut file) = self.file.take() {
            file.flush().map_err(Error::io(&self.target, "write"))?;
        }
        std::fs::rename(&self.temp, &self.target).map_err(Error::io(&self.target, "replace"))
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // Closed before it is removed; after a successful rename there is nothing left to remove.
        self.file = None;
        let _ = std::fs::remove_file(&self.temp);
    }
}
