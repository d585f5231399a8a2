//! CSV, TSV and JSON Lines with named columns, read row by row and written back with columns added.

use crate::error::Result;
use std::path::Path;

/// How a file's rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated, RFC 4180 quoting, a header line.
    Csv,
    /// Tab-separated, a header line.
    Tsv,
    /// A JSON object on each line.
    Jsonl,
}

impl Format {
    /// From the file name's extension.
    pub fn of(path: &Path) -> Result<Self> {
        todo!("{path:?}")
    }
}

/// One labelled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledText {
    /// The raw text.
    pub text: String,
    /// The label as it stands in the file.
    pub label: String,
    /// 1-based line in the file, for messages.
    pub line: u64,
}

/// Reads every row's text and label.
pub fn read_labelled(path: &Path, text_column: &str, label_column: &str) -> Result<Vec<LabelledText>> {
    todo!("{path:?} {text_column} {label_column}")
}

/// Reads `input` row by row, hands each row's text (in batches) to `answer`, and writes `output` in the same format
/// with the same columns in the same order and the answers' values in `added` columns at the end.
#[allow(clippy::type_complexity)]
pub fn annotate(
    input: &Path,
    output: &Path,
    text_column: &str,
    added: &[String],
    answer: &mut dyn FnMut(&[String]) -> Result<Vec<Vec<String>>>,
) -> Result<u64> {
    todo!("{input:?} {output:?} {text_column} {added:?} {:?}", answer(&[]))
}
