//! Scalars for TensorBoard: event files, written without TensorFlow.
//!
//! An event file is a sequence of TFRecords, each `length u64, masked CRC-32C of it u32, data, masked CRC-32C of the data
//! u32`, little-endian; the data is an `Event` in Protocol Buffers' encoding, of which three fields are enough:
//! `wall_time` (1, double), `step` (2, int64) and `summary` (5), a list of `tag` (1) and `simple_value` (2, float). The
//! first event holds `file_version` (3), `brain.Event:2`. Sources: tensorflow/core/lib/io/record_writer.h and
//! tensorboard/compat/proto/{event,summary}.proto. That is some sixty lines; a Protocol Buffers crate and its generated
//! code would be more, and another thing to keep up to date.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What TensorBoard looks for in the name of an event file.
const MARK: &str = "tfevents";

/// An event file that grows.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    fresh: bool,
}

impl Writer {
    /// Begins a new event file in `folder`, which is made if it is not there. Files of earlier calls stay: TensorBoard
    /// shows all that one folder holds as one run.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
        let mut fresh = true;
        for entry in fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
            let entry = entry.map_err(Error::io(folder, "read"))?;
            fresh &= !entry.file_name().to_string_lossy().contains(MARK);
        }
        let seconds = now();
        // TensorBoard reads a folder's files in the order of their names: the time comes first, then what keeps two
        // files of one second apart.
        let (mut number, process) = (0u32, std::process::id());
        loop {
            let path =
                folder.join(format!("events.out.{MARK}.{:010}.recurve.{process}.{number}", seconds as u64));
            match File::create_new(&path) {
                Ok(file) => {
                    let mut writer = Self { path, file, fresh };
                    let mut event = Vec::new();
                    double(&mut event, 1, seconds);
                    bytes(&mut event, 3, b"brain.Event:2");
                    writer.record(&event)?;
                    return Ok(writer);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < u32::MAX => {
                    number += 1;
                }
                Err(error) => return Err(Error::io(&path, "create")(error)),
            }
        }
    }

    /// True if the folder held no event file before.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds one event: each tag's value at `step`, stamped with the present time. It is in the file on return.
    pub fn scalars(&mut self, step: u32, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            bytes(&mut entry, 1, tag.as_bytes());
            key(&mut entry, 2, 5);
            // The format has no wider value.
            entry.extend((*value as f32).to_le_bytes());
            bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        double(&mut event, 1, now());
        key(&mut event, 2, 0);
        varint(&mut event, u64::from(step));
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut framed = length.to_vec();
        framed.extend(masked_crc32c(&length).to_le_bytes());
        framed.extend(data);
        framed.extend(masked_crc32c(data).to_le_bytes());
        // One write for a record: a reader meets a whole one, or the file's end.
        self.file.write_all(&framed).map_err(Error::io(&self.path, "write"))
    }
}

/// Seconds since 1970; 0 if the clock stands before that.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field's number and wire type: 0 varint, 1 eight bytes, 2 a length and so many bytes, 5 four bytes.
fn key(out: &mut Vec<u8>, field: u64, wire: u64) {
    varint(out, field << 3 | wire);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// CRC-32C by bytes (Castagnoli's polynomial, reflected).
const TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

/// TFRecord's form of a checksum, so that one computed over data which holds checksums stays meaningful.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn numbers_have_seven_bits_a_byte() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 2]);
    }
}
