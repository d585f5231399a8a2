//! From what the user names to padded, labelled, split examples.

use super::batch::{Side, pad_sequences};
use super::imdb::{self, Inputs};
use super::text::{Labels, Vocabulary, stratified_split};
use super::{Examples, Sequences, sample, table};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the examples come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Source {
    /// Keras' IMDB archive if there is one in a known folder, else the embedded set.
    #[default]
    Auto,
    /// The embedded movie-review snippets.
    Sample,
    /// Keras' IMDB archive from a known folder.
    Imdb,
    /// A `.npz`, `.csv`, `.tsv` or `.jsonl` file.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Source::Auto,
            "sample" => Source::Sample,
            "imdb" => Source::Imdb,
            path => Source::File(PathBuf::from(path)),
        })
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        match text.parse() {
            Ok(source) => source,
        }
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Auto => f.write_str("auto"),
            Source::Sample => f.write_str("sample"),
            Source::Imdb => f.write_str("imdb"),
            Source::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What to load and how to prepare it. Written into every model file, so that `--resume` and `eval` find the same rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataOptions {
    /// What to read.
    pub source: Source,
    /// A file of test rows, for raw text.
    pub test: Option<PathBuf>,
    /// Ids stay below this.
    pub num_words: usize,
    /// Ids of a row, `T`. `None`: [`DataOptions::MAXLEN`], or the width of prepared ids.
    pub maxlen: Option<usize>,
    /// Where shorter rows are padded.
    pub padding: Side,
    /// Where longer rows are cut.
    pub truncating: Side,
    /// Column of the text in CSV, TSV and JSONL.
    pub text_column: String,
    /// Column of the label.
    pub label_column: String,
    /// Share of raw-text rows held out as the test part where no test file is given.
    pub test_fraction: f64,
    /// Share of the training rows held out as the validation part. `None`: a tenth of raw text, nothing of archives,
    /// whose published figures are those of all training rows.
    pub validation_fraction: Option<f64>,
    /// Classes. `None`: as many as the labels need.
    pub classes: Option<usize>,
    /// Seed of the splits.
    pub seed: u64,
}

impl DataOptions {
    /// Ids of a row unless said otherwise, as in the reference program.
    pub const MAXLEN: usize = 32;
    /// The largest `--maxlen`.
    pub const MAXLEN_MAX: usize = 1 << 16;
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            source: Source::Auto,
            test: None,
            num_words: 10_000,
            maxlen: None,
            padding: Side::Pre,
            truncating: Side::Pre,
            text_column: "text".into(),
            label_column: "label".into(),
            test_fraction: 0.2,
            validation_fraction: None,
            classes: None,
            seed: 0,
        }
    }
}

/// How raw text becomes a row of ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    /// Ids of a row, `T`.
    pub maxlen: usize,
    /// Where shorter rows are padded.
    pub padding: Side,
    /// Where longer rows are cut.
    pub truncating: Side,
    /// Which words the ids stand for.
    pub words: Words,
}

/// Which words the ids of a model stand for.
#[derive(Clone, Debug, PartialEq)]
pub enum Words {
    /// These.
    Known(Vocabulary),
    /// Those of Keras' IMDB word index, which was not at hand when the model was trained.
    ImdbIndex,
    /// Unknown: the model was trained on prepared ids.
    Prepared,
}

impl Encoding {
    /// Rows `[N,T]` of raw texts.
    ///
    /// # Errors
    /// If the words are not known.
    pub fn rows<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<u32>> {
        let vocabulary = self.vocabulary()?;
        let sequences: Sequences = texts.into_iter().map(|text| vocabulary.encode(text)).collect();
        Ok(self.pad(&sequences))
    }

    fn vocabulary(&self) -> Result<&Vocabulary> {
        match &self.words {
            Words::Known(vocabulary) => Ok(vocabulary),
            Words::ImdbIndex => Err(Error::Failed(
                "this model was trained on IMDB ids without their word index, so raw text cannot be turned into ids. \
                 Get the index with `recurve fetch imdb` (it is found in recurve's data folder and in Keras' cache), \
                 then ask again"
                    .into(),
            )),
            Words::Prepared => Err(Error::Failed(
                "this model was trained on prepared ids and holds no vocabulary, so raw text cannot be turned into \
                 ids; name its words with --words, or train on raw text (CSV, TSV or JSONL)"
                    .into(),
            )),
        }
    }

    fn pad(&self, sequences: &Sequences) -> Vec<u32> {
        pad_sequences(sequences, self.maxlen, self.padding, self.truncating)
    }
}

/// Everything a training needs.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// A short name, for the run folder: `sample`, `imdb`, or the file's stem.
    pub name: String,
    /// The options as they were resolved: no `auto`, no open defaults.
    pub options: DataOptions,
    /// One sentence for the user: what it is and where it came from.
    pub description: String,
    /// How to get the other one, after `auto`.
    pub hint: Option<String>,
    /// Rows to train on.
    pub train: Examples,
    /// Rows for early stopping and the choice of the best epoch.
    pub validation: Option<Examples>,
    /// Rows that are only reported.
    pub test: Option<Examples>,
    /// Ids needed, `V`.
    pub vocab: usize,
    /// Class names.
    pub classes: Vec<String>,
    /// How its text became ids.
    pub encoding: Encoding,
    /// SHA-256 of all rows, labels and class names, in hex.
    pub sha256: String,
}

/// The archive and the word index in a folder.
pub const IMDB_ARCHIVE: &str = "imdb.npz";
/// Keras' word index.
pub const IMDB_WORD_INDEX: &str = "imdb_word_index.json";

/// recurve's own data folder: `RECURVE_DATA`, else the platform's folder for application data.
pub fn data_folder() -> Result<PathBuf> {
    use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
    if let Some(folder) = std::env::var_os("RECURVE_DATA").filter(|folder| !folder.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    let strategy = choose_native_strategy().map_err(|_| {
        Error::Failed(
            "there is no home folder to keep data in; name one with the variable RECURVE_DATA".into(),
        )
    })?;
    Ok(strategy.data_dir().join("recurve"))
}

/// The folders where the IMDB files are looked for: recurve's own, then Keras' cache.
pub fn imdb_folders() -> Vec<PathBuf> {
    let keras = std::env::var_os("KERAS_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .or_else(|| etcetera::home_dir().ok().map(|home| home.join(".keras")));
    data_folder().ok().into_iter().chain(keras.map(|keras| keras.join("datasets"))).collect()
}

fn find_imdb(name: &str) -> Option<PathBuf> {
    imdb_folders().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The vocabulary of Keras' word index from a known folder, if it is there.
pub fn imdb_vocabulary(num_words: usize) -> Result<Option<Vocabulary>> {
    find_imdb(IMDB_WORD_INDEX).map(|path| Vocabulary::from_word_index(&path, num_words)).transpose()
}

/// Raw texts and labels before they have ids.
struct Texts {
    texts: Vec<String>,
    labels: Vec<String>,
}

impl Texts {
    fn read(path: &Path, options: &DataOptions) -> Result<(Self, Vec<u64>)> {
        let rows = table::read_labelled(path, &options.text_column, &options.label_column)?;
        let lines = rows.iter().map(|row| row.line).collect();
        let (texts, labels) = rows.into_iter().map(|row| (row.text, row.label)).unzip();
        Ok((Self { texts, labels }, lines))
    }

    fn select(&self, rows: &[u32]) -> impl Iterator<Item = &str> + Clone {
        rows.iter().map(|&row| self.texts[row as usize].as_str())
    }
}

/// Loads, splits, encodes and pads. `vocabulary` replaces the one that would be fitted (a model's own, when training
/// goes on or starts from its weights).
pub fn load(options: &DataOptions, vocabulary: Option<Vocabulary>) -> Result<Dataset> {
    check(options)?;
    let mut options = options.clone();
    let mut hint = None;
    if options.source == Source::Auto {
        (options.source, hint) = match find_imdb(IMDB_ARCHIVE) {
            Some(_) => (Source::Imdb, Some("The embedded movie-review snippets instead: --data sample".to_string())),
            None => (
                Source::Sample,
                Some(
                    "The 25,000 IMDB reviews of the reference program instead: recurve fetch imdb, then train again"
                        .to_string(),
                ),
            ),
        };
    }
    let mut dataset = match options.source.clone() {
        Source::Auto | Source::Sample => load_sample(options, vocabulary),
        Source::Imdb => match find_imdb(IMDB_ARCHIVE) {
            Some(path) => load_archive(&path, options, vocabulary),
            None => Err(Error::usage(
                "--data imdb",
                format!(
                    "there is no {IMDB_ARCHIVE} in {}; get it with: recurve fetch imdb",
                    imdb_folders().iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" or ")
                ),
            )),
        },
        Source::File(path) if extension(&path) == "npz" => load_archive(&path, options, vocabulary),
        Source::File(path) => load_text(&path, options, vocabulary),
    }?;
    dataset.hint = hint;
    Ok(dataset)
}

fn check(options: &DataOptions) -> Result<()> {
    let fraction = |flag: &str, value: f64| {
        if (0.0..1.0).contains(&value) {
            return Ok(());
        }
        Err(Error::usage(flag, format!("{value} is out of range; expected at least 0 and below 1")))
    };
    fraction("--test-fraction", options.test_fraction)?;
    fraction("--validation-fraction", options.validation_fraction.unwrap_or(0.0))?;
    if let Some(maxlen) = options.maxlen
        && !(1..=DataOptions::MAXLEN_MAX).contains(&maxlen)
    {
        let range = format!("{maxlen} is out of range; expected 1 to {}", DataOptions::MAXLEN_MAX);
        return Err(Error::usage("--maxlen", range));
    }
    if options.num_words < 4 {
        return Err(Error::usage(
            "--num-words",
            format!(
                "{} is too small: ids 0, 1 and 2 stand for padding, start and unknown words, 3 for none; expected at \
                 least 4",
                options.num_words
            ),
        ));
    }
    Ok(())
}

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String = stem
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .take(60)
        .collect();
    if name.is_empty() { "data".to_string() } else { name }
}

fn all_rows(n: usize) -> Result<Vec<u32>> {
    let n =
        u32::try_from(n).map_err(|_| Error::Failed(format!("{n} rows are more than the 2^32 that fit")))?;
    Ok((0..n).collect())
}

fn load_sample(mut options: DataOptions, vocabulary: Option<Vocabulary>) -> Result<Dataset> {
    refuse_test_file(&options)?;
    let snippets = sample::snippets()?;
    let rows = all_rows(snippets.len())?;
    let (test, train): (Vec<u32>, Vec<u32>) = rows.into_iter().partition(|&row| snippets[row as usize].test);
    let y: Vec<u32> = snippets.iter().map(|snippet| snippet.label).collect();
    let texts =
        Texts { texts: snippets.into_iter().map(|snippet| snippet.text).collect(), labels: Vec::new() };
    let (train, validation) = hold_out_validation(&mut options, &y, train, 0.1);
    let classes = sample::CLASSES.map(String::from).to_vec();
    let classes = check_classes(&options, classes)?;
    let parts = TextParts { texts: &texts, y: &y, train, validation, test };
    let description = "embedded movie-review snippets (Hutto & Gilbert 2014)".to_string();
    finish_text("sample".into(), description, options, vocabulary, parts, None, classes)
}

/// Splits the validation rows off the training rows.
fn hold_out_validation(
    options: &mut DataOptions,
    y: &[u32],
    train: Vec<u32>,
    default: f64,
) -> (Vec<u32>, Vec<u32>) {
    let fraction = *options.validation_fraction.get_or_insert(default);
    if fraction == 0.0 {
        return (train, Vec::new());
    }
    let train_y: Vec<u32> = train.iter().map(|&row| y[row as usize]).collect();
    let (rest, drawn) = stratified_split(&train_y, fraction, options.seed, 1);
    let rows = |picked: Vec<u32>| picked.into_iter().map(|k| train[k as usize]).collect();
    (rows(rest), rows(drawn))
}

struct TextParts<'a> {
    texts: &'a Texts,
    y: &'a [u32],
    train: Vec<u32>,
    validation: Vec<u32>,
    test: Vec<u32>,
}

fn load_text(path: &Path, mut options: DataOptions, vocabulary: Option<Vocabulary>) -> Result<Dataset> {
    let (texts, _) = Texts::read(path, &options)?;
    let labels = Labels::fit(texts.labels.iter().map(String::as_str));
    // Every label was fitted, so every label has an index.
    let y: Vec<u32> = texts.labels.iter().filter_map(|label| labels.index(label)).collect();
    let rows = all_rows(y.len())?;
    let (train, test, outside) = match options.test.clone() {
        Some(test_path) => {
            let (test, lines) = Texts::read(&test_path, &options)?;
            let mut test_y = Vec::with_capacity(lines.len());
            for (label, line) in test.labels.iter().zip(lines) {
                test_y.push(label_index(&labels, label, &test_path, line)?);
            }
            (rows, Vec::new(), Some((test, test_y)))
        }
        None if options.test_fraction == 0.0 => (rows, Vec::new(), None),
        None => {
            let (train, test) = stratified_split(&y, options.test_fraction, options.seed, 0);
            (train, test, None)
        }
    };
    let (train, validation) = hold_out_validation(&mut options, &y, train, 0.1);
    if labels.names.len() < 2 && options.classes.is_none() {
        return Err(Error::format(
            path,
            format!("column {}", options.label_column),
            format!("every row has the label {:?}; a classifier needs at least two", labels.names.join("")),
        ));
    }
    let classes = check_classes(&options, labels.names)?;
    let description = format!("text from {}", path.display());
    let parts = TextParts { texts: &texts, y: &y, train, validation, test };
    finish_text(stem(path), description, options, vocabulary, parts, outside, classes)
}

fn label_index(labels: &Labels, label: &str, path: &Path, line: u64) -> Result<u32> {
    labels.index(label).ok_or_else(|| {
        Error::format(
            path,
            format!("line {line}"),
            format!("the label {label:?} does not occur in the training rows, which have {:?}", labels.names),
        )
    })
}

/// Fits the vocabulary on the training rows alone, then encodes and pads every part.
fn finish_text(
    name: String,
    description: String,
    mut options: DataOptions,
    vocabulary: Option<Vocabulary>,
    parts: TextParts<'_>,
    outside: Option<(Texts, Vec<u32>)>,
    classes: Vec<String>,
) -> Result<Dataset> {
    let TextParts { texts, y, train, validation, test } = parts;
    let vocabulary = vocabulary.unwrap_or_else(|| Vocabulary::fit(texts.select(&train), options.num_words));
    let maxlen = *options.maxlen.get_or_insert(DataOptions::MAXLEN);
    let vocab = vocabulary.ids();
    let encoding = Encoding {
        maxlen,
        padding: options.padding,
        truncating: options.truncating,
        words: Words::Known(vocabulary),
    };
    let part = |rows: &[u32]| -> Result<Option<Examples>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let x = encoding.rows(texts.select(rows))?;
        Ok(Some(Examples { x, y: rows.iter().map(|&row| y[row as usize]).collect(), t: maxlen }))
    };
    let test = match outside {
        Some((texts, y)) => {
            Some(Examples { x: encoding.rows(texts.texts.iter().map(String::as_str))?, y, t: maxlen })
        }
        None => part(&test)?,
    };
    let train =
        part(&train)?.ok_or_else(|| Error::Failed(format!("{description}: no training rows are left")))?;
    let validation = part(&validation)?;
    finish(name, description, options, train, validation, test, vocab, classes, encoding)
}

fn load_archive(path: &Path, mut options: DataOptions, vocabulary: Option<Vocabulary>) -> Result<Dataset> {
    refuse_test_file(&options)?;
    let archive = imdb::load_cut(path, options.num_words, options.maxlen, options.truncating)?;
    let is_imdb = path.file_name().is_some_and(|name| name == IMDB_ARCHIVE);
    let mut words = Words::Prepared;
    let mut maxlen = options.maxlen;
    if let Inputs::Ragged(_) = archive.train.x {
        maxlen = Some(maxlen.unwrap_or(DataOptions::MAXLEN));
        let beside = path.with_file_name(IMDB_WORD_INDEX);
        words = match vocabulary {
            Some(vocabulary) => Words::Known(vocabulary),
            None if beside.is_file() => {
                Words::Known(Vocabulary::from_word_index(&beside, options.num_words)?)
            }
            None if is_imdb => Words::ImdbIndex,
            None => Words::Prepared,
        };
    }
    let mut pad = |member: &str, inputs: Inputs| -> Result<(Vec<u32>, usize)> {
        match inputs {
            Inputs::Ragged(sequences) => {
                let t = *maxlen.get_or_insert(DataOptions::MAXLEN);
                Ok((pad_sequences(&sequences, t, options.padding, options.truncating), t))
            }
            Inputs::Padded { ids, t } => {
                let wanted = *maxlen.get_or_insert(t);
                if wanted != t {
                    return Err(Error::usage(
                        "--maxlen",
                        format!(
                            "{}, {member} holds prepared ids of width {t}, which are taken as they are; {wanted} \
                             differs. Leave --maxlen out",
                            path.display()
                        ),
                    ));
                }
                Ok((ids, t))
            }
        }
    };
    let (x, t) = pad("x_train", archive.train.x)?;
    let train = Examples { x, y: archive.train.y, t };
    let test = match archive.test {
        Some(part) => {
            let (x, t) = pad("x_test", part.x)?;
            Some(Examples { x, y: part.y, t })
        }
        None => None,
    };
    let largest = train.y.iter().chain(test.iter().flat_map(|test| &test.y)).max().copied().unwrap_or(0);
    let needed = (largest as usize + 1).max(2);
    let names = match (is_imdb, needed) {
        (true, 2) => sample::CLASSES.map(String::from).to_vec(),
        // A label is a number that the file chose: names are made for as many classes as are plausible only.
        (_, n) if n <= crate::model::ModelConfig::MAX.min(train.rows().saturating_mul(2).max(1000)) => {
            (0..n).map(|class| class.to_string()).collect()
        }
        _ => {
            return Err(Error::format(
                path,
                "y_train",
                format!(
                    "label {largest} would need {needed} classes for {} rows; labels count up from 0",
                    train.rows()
                ),
            ));
        }
    };
    let classes = check_classes(&options, names)?;
    let (rest, drawn) = hold_out_validation(&mut options, &train.y, all_rows(train.rows())?, 0.0);
    let validation = (!drawn.is_empty()).then(|| train.select(&drawn));
    let train = if drawn.is_empty() { train } else { train.select(&rest) };
    let encoding = Encoding { maxlen: t, padding: options.padding, truncating: options.truncating, words };
    options.maxlen = Some(t);
    let vocab = options.num_words;
    let name = if is_imdb { "imdb".to_string() } else { stem(path) };
    let description = format!("archive {}", path.display());
    finish(name, description, options, train, validation, test, vocab, classes, encoding)
}

fn refuse_test_file(options: &DataOptions) -> Result<()> {
    match &options.test {
        None => Ok(()),
        Some(path) => Err(Error::usage(
            "--test",
            format!(
                "{} cannot be used with {}, which brings its own test part",
                path.display(),
                options.source
            ),
        )),
    }
}

/// The class names, widened to `--classes` where that is larger.
fn check_classes(options: &DataOptions, mut names: Vec<String>) -> Result<Vec<String>> {
    if let Some(wanted) = options.classes {
        if wanted < names.len() && wanted != 1 {
            return Err(Error::usage(
                "--classes",
                format!("{wanted}, but the data has {} classes; leave the flag out or raise it", names.len()),
            ));
        }
        crate::model::ModelConfig { classes: wanted, ..Default::default() }.check()?;
        for class in names.len()..wanted {
            names.push(class.to_string());
        }
    }
    Ok(names)
}

#[allow(clippy::too_many_arguments)] // one call site a kind of source; the fields of Dataset by name
fn finish(
    name: String,
    description: String,
    options: DataOptions,
    train: Examples,
    validation: Option<Examples>,
    test: Option<Examples>,
    vocab: usize,
    classes: Vec<String>,
    encoding: Encoding,
) -> Result<Dataset> {
    for (part, examples) in
        [("training", Some(&train)), ("validation", validation.as_ref()), ("test", test.as_ref())]
    {
        if let Some(examples) = examples {
            examples
                .check(vocab, classes.len())
                .map_err(|error| Error::Failed(format!("{description}, {part} part: {error}")))?;
        }
    }
    let mut hash = Sha256::new();
    for examples in [Some(&train), validation.as_ref(), test.as_ref()] {
        let (rows, t) = examples.map_or((0, 0), |e| (e.rows(), e.t));
        hash.update((rows as u64).to_le_bytes());
        hash.update((t as u64).to_le_bytes());
        if let Some(examples) = examples {
            hash_ids(&mut hash, &examples.x);
            hash_ids(&mut hash, &examples.y);
        }
    }
    hash.update(serde_json::to_vec(&classes).unwrap_or_default());
    let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Dataset {
        name,
        options,
        description,
        hint: None,
        train,
        validation,
        test,
        vocab,
        classes,
        encoding,
        sha256,
    })
}

/// Hashes the ids as little-endian bytes, many at a time: a call for each would take longer than the hash.
fn hash_ids(hash: &mut Sha256, ids: &[u32]) {
    let mut bytes = [0u8; 1024];
    for ids in ids.chunks(bytes.len() / 4) {
        for (bytes, id) in bytes.chunks_exact_mut(4).zip(ids) {
            bytes.copy_from_slice(&id.to_le_bytes());
        }
        hash.update(&bytes[..4 * ids.len()]);
    }
}

/// A 32-bit fingerprint of a row's ids, by which `eval` recognises rows that were trained on.
pub fn row_fingerprint(ids: &[u32]) -> u32 {
    let mut hash = Sha256::new();
    hash_ids(&mut hash, ids);
    let digest = hash.finalize();
    u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Every labelled row of `path`, prepared as a model's training data was: for `eval` on a given file. Archives give
/// their training and test rows alike.
pub fn load_for_eval(
    path: &Path,
    options: &DataOptions,
    encoding: &Encoding,
    classes: &[String],
) -> Result<Examples> {
    let t = encoding.maxlen;
    if extension(path) != "npz" {
        let (texts, lines) = Texts::read(path, options)?;
        let labels = Labels { names: classes.to_vec() };
        let mut y = Vec::with_capacity(lines.len());
        for (label, line) in texts.labels.iter().zip(lines) {
            y.push(label_index(&labels, label, path, line)?);
        }
        let x = encoding.rows(texts.texts.iter().map(String::as_str))?;
        return Ok(Examples { x, y, t });
    }
    let archive = imdb::load_cut(path, options.num_words, Some(t), encoding.truncating)?;
    let mut all = Examples { x: Vec::new(), y: Vec::new(), t };
    for part in [Some(archive.train), archive.test].into_iter().flatten() {
        match part.x {
            Inputs::Ragged(sequences) => all.x.extend(encoding.pad(&sequences)),
            Inputs::Padded { t: width, .. } if width != t => {
                return Err(Error::format(
                    path,
                    "",
                    format!("its rows hold {width} ids, but the model was trained on rows of {t}"),
                ));
            }
            Inputs::Padded { ids, .. } => all.x.extend(ids),
        }
        all.y.extend(part.y);
    }
    all.check(options.num_words, classes.len())
        .map_err(|error| Error::format(path, "", error.to_string()))?;
    Ok(all)
}
