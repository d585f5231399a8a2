//! Files that are whole or absent: written beside their place and renamed.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes `path` through `write`: into a file beside it, flushed to the disk, then renamed over it. Whoever reads
/// `path`, whenever, and whatever kills this process, finds the old file or the new one.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let name = path.file_name().ok_or_else(|| {
        Error::usage(path.display().to_string(), "this path has no file name; name a file to write")
    })?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The process number keeps two writers of one path apart.
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = folder.join(beside);

    let file = File::create(&beside).map_err(Error::io(path, "create"))?;
    let mut buffered = BufWriter::new(file);
    let done = write(&mut buffered)
        .and_then(|()| buffered.flush().map_err(Error::io(path, "write")))
        .and_then(|()| buffered.get_ref().sync_all().map_err(Error::io(path, "write")));
    drop(buffered);
    let done = done.and_then(|()| fs::rename(&beside, path).map_err(Error::io(path, "rename")));
    if done.is_err() {
        // The reason for the failure is what the caller needs; a second failure here would hide it.
        let _ = fs::remove_file(&beside);
        return done;
    }
    // The rename itself reaches the disk with its folder; not every file system lets a folder be opened.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// True if a killed [`write_atomically`] of `file` may have left `name`.
pub fn is_leftover(name: &str, file: &str) -> bool {
    let number = name
        .strip_prefix('.')
        .and_then(|rest| rest.strip_prefix(file))
        .and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".tmp"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// [`write_atomically`] for bytes at hand.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |out| out.write_all(bytes).map_err(Error::io(path, "write")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_bytes(&path, b"old").unwrap();
        let failed = write_atomically(&path, |out| {
            out.write_all(b"half").unwrap();
            Err(Error::Failed("stop".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write_bytes(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let error = write_bytes(Path::new("no/such/folder/a.txt"), b"").unwrap_err().to_string();
        assert!(error.contains("a.txt"), "{error}");
    }
}
