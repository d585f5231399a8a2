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
/// A snippet is test data if the hash of its text says so, about one in five: the split depends on nothing else, and
/// equal texts stand on one side of it.
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
    let snippet = |(k, line): (usize, &str)| match line.split_once('\t') {
        Some((label @ ("0" | "1"), text)) => {
            Ok(Snippet { text: text.to_owned(), label: u32::from(label == "1"), test: is_test(text) })
        }
        _ => Err(damaged(format!("line {} is not a 0 or 1, a tab and a text", k + 1))),
    };
    lines.lines().enumerate().map(snippet).collect()
}

/// The fixed split, by text alone.
fn is_test(text: &str) -> bool {
    let digest = Sha256::digest(text.as_bytes());
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first) % 5 == 0
}
