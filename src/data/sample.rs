//! The embedded data set: movie-review snippets.
//!
//! Where they come from, under which licence and how the file was made stands in `assets/sample/README.md`.

use crate::error::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::io::Read as _;

/// One snippet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// The sentence or two.
    pub text: String,
    /// 1 if its readers rated it above zero, 0 if below.
    pub label: u32,
    /// True if it belongs to the fixed test fifth.
    pub test: bool,
}

/// Names of the two classes, by label.
pub const CLASSES: [&str; 2] = ["negative", "positive"];

/// A label, a tab and a text on each line, gzipped.
const ARCHIVE: &[u8] = include_bytes!("../../assets/sample/snippets.tsv.gz");
/// More than the archive unpacks to (1.2 MB): a bound for a file that was tampered with.
const MAX_BYTES: u64 = 8 << 20;

/// All snippets, in the source's order.
///
/// The split is fixed and stratified: of each class, the fifth whose texts have the smallest SHA-256 is test data.
pub fn snippets() -> Result<Vec<Snippet>> {
    let damaged = |what: String| {
        Error::Failed(format!(
            "the embedded snippets (assets/sample/snippets.tsv.gz) are damaged: {what}; make them again with \
             scripts/make-sample and rebuild"
        ))
    };
    let mut lines = String::new();
    let unpacked = flate2::read::GzDecoder::new(ARCHIVE).take(MAX_BYTES).read_to_string(&mut lines);
    unpacked.map_err(|error| damaged(error.to_string()))?;
    let mut snippets = Vec::new();
    for (k, line) in lines.lines().enumerate() {
        let Some((label @ ("0" | "1"), text)) = line.split_once('\t') else {
            return Err(damaged(format!("line {} is not a 0 or 1, a tab and a text", k + 1)));
        };
        snippets.push(Snippet { text: text.to_owned(), label: u32::from(label == "1"), test: false });
    }
    for label in 0..CLASSES.len() as u32 {
        let rows = (0..snippets.len()).filter(|&row| snippets[row].label == label);
        let mut hashed: Vec<_> =
            rows.map(|row| (Sha256::digest(snippets[row].text.as_bytes()), row)).collect();
        hashed.sort_unstable();
        hashed.truncate((hashed.len() + 2) / 5);
        hashed.into_iter().for_each(|(_, row)| snippets[row].test = true);
    }
    Ok(snippets)
}
