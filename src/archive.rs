//! ZIP archives (`.npz`, `.keras`), validated before the `zip` crate allocates or unpacks anything by a number that stands
//! in them:
//! * the end record, before a directory is allocated by its count ([`MAX_MEMBERS`]);
//! * a member's sizes, against the file's length and against what deflate can yield ([`DEFLATE_RATIO`]).
//!
//! Memory grows with the bytes that really came out of the archive.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};
use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// Members that an archive may have. The directory's memory is bounded through it; a model has six.
pub const MAX_MEMBERS: u64 = 1024;
/// The most that one byte of deflated data can stand for: 258 bytes for two bits.
pub const DEFLATE_RATIO: u64 = 1032;
/// Members that are declared larger than this must not be packed more than [`LARGE_RATIO`] times; a bomb would.
pub const LARGE_MEMBER: u64 = 64 << 20;
/// See [`LARGE_MEMBER`]. Padded ids, mostly zeros, reach a few tens.
pub const LARGE_RATIO: u64 = 100;

/// What an archive should be, for messages.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// `.npz`
    pub name: &'static str,
    /// What writes one: `np.savez`
    pub maker: &'static str,
}

/// An open archive.
pub struct Archive<R = BufReader<File>> {
    path: PathBuf,
    kind: Kind,
    bytes: u64,
    zip: ZipArchive<R>,
}

impl Archive {
    /// Opens a file and reads its directory.
    pub fn open(path: &Path, kind: Kind) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        Self::from_reader(path, kind, BufReader::new(file))
    }
}

impl<R: Read + Seek> Archive<R> {
    /// The same from any reader; `path` is its name in messages.
    pub fn from_reader(path: &Path, kind: Kind, mut reader: R) -> Result<Self> {
        let bytes = reader.seek(SeekFrom::End(0)).map_err(Error::io(path, "read"))?;
        check_end_records(path, kind, &mut reader, bytes)?;
        let zip = ZipArchive::new(reader).map_err(|error| broken(path, kind, String::new(), error))?;
        if zip.has_duplicate_names() {
            return Err(Error::format(path, "", "two members have the same name; write the archive again"));
        }
        Ok(Self { path: path.to_path_buf(), kind, bytes, zip })
    }

    /// The file's name, as messages give it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the members by index.
    pub fn names(&self) -> Result<Vec<String>> {
        let name = |index: usize| {
            let name = self.zip.name_for_index(index)?;
            let place = format!("member {}", index + 1);
            Some(name.map(String::from).map_err(|error| broken(&self.path, self.kind, place, error)))
        };
        (0..self.zip.len()).filter_map(name).collect()
    }

    /// A member's stream and its declared size, once that is known to be plausible. The stream ends one byte after that
    /// size, so that whoever reads on reaches the end of the member and with it the checksum.
    pub fn member(&mut self, index: usize, place: &str) -> Result<(u64, BufReader<Take<ZipFile<'_, R>>>)> {
        let declared = self.declared_size(index, place)?;
        let member =
            self.zip.by_index(index).map_err(|e| broken(&self.path, self.kind, place.to_string(), e))?;
        Ok((declared, BufReader::with_capacity(64 << 10, member.take(declared.saturating_add(1)))))
    }

    /// The whole of the member `name`, which must not be declared larger than `most` bytes.
    pub fn read(&mut self, name: &str, most: u64) -> Result<Vec<u8>> {
        let place = member_place(name);
        let index = self.names()?.iter().position(|known| known == name).ok_or_else(|| {
            let message = format!(
                "there is no {name} in it; expected a {} as {} writes it",
                self.kind.name, self.kind.maker
            );
            Error::format(&self.path, "", message)
        })?;
        let path = self.path.clone();
        let (declared, stream) = self.member(index, &place)?;
        let bad = |message: String| Error::format(&path, &place, message);
        if declared > most {
            return Err(bad(format!("{declared} bytes; expected at most {most}")));
        }
        let mut bytes = Vec::new();
        let read = { stream }.read_to_end(&mut bytes);
        read.map_err(|e| bad(format!("it cannot be unpacked ({e}); the file is damaged")))?;
        if bytes.len() as u64 != declared {
            return Err(bad(format!(
                "{} bytes where {declared} are declared; the file is damaged",
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// The member's uncompressed size, as the central directory has it, once it is known to be plausible.
    fn declared_size(&self, index: usize, place: &str) -> Result<u64> {
        let error = |message: String| Error::format(&self.path, place, message);
        let entry =
            self.zip.by_index_data(index).map_err(|e| broken(&self.path, self.kind, place.to_string(), e))?;
        if entry.encrypted() {
            return Err(error(
                "the member is encrypted, which is not read; save it without a password".into(),
            ));
        }
        let (size, packed) = (entry.size(), entry.compressed_size());
        if packed > self.bytes {
            return Err(error(format!(
                "{packed} packed bytes in a file of {}; the file is cut off or damaged",
                self.bytes
            )));
        }
        let ratio = match entry.compression() {
            CompressionMethod::Stored => 1,
            CompressionMethod::Deflated if size > LARGE_MEMBER => LARGE_RATIO,
            CompressionMethod::Deflated => DEFLATE_RATIO,
            other => {
                return Err(error(format!(
                    "compression {other:?}, expected stored or deflated, as {} writes it",
                    self.kind.maker
                )));
            }
        };
        if size > packed.saturating_mul(ratio) {
            return Err(error(format!(
                "{packed} packed bytes are said to hold {size}, expected at most {ratio} times as many; \
                 the file is damaged or made to exhaust memory"
            )));
        }
        Ok(size)
    }
}

/// A member in a message. Its name is untrusted: escaped, and not longer than a line.
pub fn member_place(name: &str) -> String {
    let shown: String = name.chars().take(84).flat_map(char::escape_debug).collect();
    format!("member {shown}")
}

/// What the `zip` crate said, with the place.
fn broken(path: &Path, kind: Kind, place: String, error: ZipError) -> Error {
    let Kind { name, maker } = kind;
    match error {
        ZipError::Io(source) if source.raw_os_error().is_some() => Error::io(path, "read")(source),
        ZipError::Io(source) => Error::format(
            path,
            place,
            format!("{source}; the file is cut off or damaged, or not a {name} archive"),
        ),
        error => {
            Error::format(path, place, format!("{error}; expected a {name} archive as {maker} writes it"))
        }
    }
}

/// Refuses an archive whose end record announces more members than [`MAX_MEMBERS`]: `zip` allocates a directory by
/// that count. It looks at every record that `zip` might settle on.
fn check_end_records<R: Read + Seek>(path: &Path, kind: Kind, reader: &mut R, bytes: u64) -> Result<()> {
    const RECORD: usize = 22;
    const LOCATOR: usize = 20;
    let tail = (RECORD + LOCATOR + (1 << 16) + 4) as u64;
    let start = bytes.saturating_sub(tail);
    reader.seek(SeekFrom::Start(start)).map_err(Error::io(path, "read"))?;
    let mut end = Vec::new();
    reader.take(tail).read_to_end(&mut end).map_err(Error::io(path, "read"))?;
    let u16_at = |at: usize| end.get(at..at + 2).map_or(0, |b| u64::from(u16::from_le_bytes([b[0], b[1]])));
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    let mut found = false;
    for at in 0..end.len().saturating_sub(RECORD - 1) {
        if end[at..at + 4] != *b"PK\x05\x06" {
            continue;
        }
        found = true;
        let zip64 = at >= LOCATOR && end[at - LOCATOR..at - LOCATOR + 4] == *b"PK\x06\x07";
        let members = u16_at(at + 8).max(u16_at(at + 10));
        let directory = u32_at(at + 16);
        // A record that points beyond itself is no record: these bytes are data, and `zip` passes over them too.
        let genuine = directory < start + at as u64 || zip64;
        if genuine && (zip64 || members > MAX_MEMBERS) {
            return Err(Error::format(
                path,
                format!("byte {}", start + at as u64),
                format!(
                    "the archive says that it has {}, more than the {MAX_MEMBERS} members and 4 GiB that are \
                     read; the file is damaged, or the arrays should go into several files",
                    if zip64 { "a ZIP64 directory".to_string() } else { format!("{members} members") }
                ),
            ));
        }
    }
    if !found {
        return Err(Error::format(
            path,
            "",
            format!(
                "there is no ZIP directory at the end; the file is cut off or not a {} archive ({} writes one)",
                kind.name, kind.maker
            ),
        ));
    }
    Ok(())
}
