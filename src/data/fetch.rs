//! Downloads of the data files, with resume and a checksum.

use crate::error::Result;
use std::path::{Path, PathBuf};

/// A file to download.
#[derive(Clone, Copy, Debug)]
pub struct Download {
    /// File name, here and behind the base address.
    pub name: &'static str,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hex.
    pub sha256: &'static str,
}

/// Downloads `files` from `base_url` into `folder`; files that are already there and right are left alone.
pub fn fetch(
    base_url: &str,
    files: &[Download],
    folder: &Path,
    progress: &mut dyn FnMut(&Download, u64),
) -> Result<Vec<PathBuf>> {
    todo!("{base_url} {files:?} {folder:?} {:?}", progress(&files[0], 0))
}
