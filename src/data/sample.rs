//! The embedded data set: movie-review snippets.

use crate::error::Result;

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

/// All snippets, in the source's order.
pub fn snippets() -> Result<Vec<Snippet>> {
    todo!()
}
