//! Downloads of the data files, with resume and a checksum.
//!
//! A file is collected beside its place as `NAME.part` and renamed only when its length and its SHA-256 are right,
//! so that what stands under the right name is always either what was there before or what was asked for. A `.part`
//! that an earlier attempt left is continued with a `Range` request.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// Where Keras keeps its data sets.
pub const KERAS_URL: &str = "https://storage.googleapis.com/tensorflow/tf-keras-datasets";

/// Keras' IMDB set: 50,000 reviews as word ranks, and the rank of each word.
pub const IMDB_FILES: [Download; 2] = [
    Download {
        name: "imdb.npz",
        bytes: 17_464_789,
        sha256: "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f",
    },
    Download {
        name: "imdb_word_index.json",
        bytes: 1_641_221,
        sha256: "027313fe9a320280f3bf0fac5baf58c4a683cf39a7ed9c3d3d3912bde4284cf6",
    },
];

/// How long a connection may take to open, and how long the server may then be silent.
const CONNECT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);

/// Downloads `files` from `base_url` into `folder`, which is created; files that are already there and right are
/// left alone. `progress` hears how many bytes of a file are there, at least once a file; the number falls back to 0
/// where a partial download turns out to be of no use.
///
/// # Errors
/// An interrupted download keeps its `.part`, and the same call continues it. A download that is complete but wrong
/// is thrown away.
pub fn fetch(
    base_url: &str,
    files: &[Download],
    folder: &Path,
    progress: &mut dyn FnMut(&Download, u64),
) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(concat!("recurve/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .timeout_per_write(Some(SILENCE))
        .build()
        .new_agent();
    files.iter().map(|file| Job::new(&agent, base_url, file, folder).run(progress)).collect()
}

/// One file on its way.
struct Job<'a> {
    agent: &'a ureq::Agent,
    file: &'a Download,
    url: String,
    target: PathBuf,
    part: PathBuf,
}

/// How an attempt ended.
enum Attempt {
    Whole,
    /// All bytes are there, and they are not the right ones.
    Wrong {
        sha256: String,
    },
    /// The server does not continue the partial file as it is.
    CannotContinue,
}

impl<'a> Job<'a> {
    fn new(agent: &'a ureq::Agent, base_url: &str, file: &'a Download, folder: &Path) -> Self {
        Self {
            agent,
            file,
            url: format!("{}/{}", base_url.trim_end_matches('/'), file.name),
            target: folder.join(file.name),
            part: folder.join(format!("{}.part", file.name)),
        }
    }

    fn run(&self, progress: &mut dyn FnMut(&Download, u64)) -> Result<PathBuf> {
        if self.target_is_right()? {
            progress(self.file, self.file.bytes);
            return Ok(self.target.clone());
        }
        let mut part = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.part)
            .map_err(Error::io(&self.part, "create"))?;
        // Two processes that appended to one file would both fail; where a file system knows no locks, the
        // checksum still stands.
        if let Err(TryLockError::WouldBlock) = part.try_lock() {
            return Err(Error::Failed(format!(
                "{} is being downloaded by another process; wait for it or stop it",
                self.part.display()
            )));
        }
        let have = part.metadata().map_err(Error::io(&self.part, "read"))?.len();
        let mut attempt = Attempt::CannotContinue;
        if (1..=self.file.bytes).contains(&have) {
            attempt = self.attempt(&mut part, have, progress)?;
        }
        // A leftover that cannot be continued, or that was wrong all along, must not stand in the way for good.
        if !matches!(attempt, Attempt::Whole) {
            part.set_len(0).map_err(Error::io(&self.part, "write"))?;
            attempt = self.attempt(&mut part, 0, progress)?;
        }
        match attempt {
            Attempt::Whole => {}
            Attempt::Wrong { sha256 } => {
                drop(part);
                self.throw_away();
                return Err(Error::format(
                    &self.url,
                    "",
                    format!(
                        "the downloaded file has SHA-256 {sha256}, expected {}; it was thrown away. The server's \
                         file has changed or was altered on the way: use another address",
                        self.file.sha256
                    ),
                ));
            }
            Attempt::CannotContinue => {
                return Err(Error::format(
                    &self.url,
                    "",
                    "the server answers with a part that was not asked for",
                ));
            }
        }
        part.sync_all().map_err(Error::io(&self.part, "write"))?;
        // Windows renames no open file.
        drop(part);
        std::fs::rename(&self.part, &self.target).map_err(Error::io(&self.target, "rename to"))?;
        Ok(self.target.clone())
    }

    fn target_is_right(&self) -> Result<bool> {
        let mut file = match File::open(&self.target) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io(&self.target, "read")(error)),
        };
        if file.metadata().map_err(Error::io(&self.target, "read"))?.len() != self.file.bytes {
            return Ok(false);
        }
        let mut hash = Sha256::new();
        hash_into(&mut hash, &mut file, self.file.bytes).map_err(Error::io(&self.target, "read"))?;
        Ok(hex(hash) == self.file.sha256)
    }

    fn throw_away(&self) {
        // The failure that led here is what the user hears of; a leftover is dealt with by the next call.
        let _ = std::fs::remove_file(&self.part);
    }

    /// Continues the partial file after its first `have` bytes.
    fn attempt(
        &self,
        part: &mut File,
        have: u64,
        progress: &mut dyn FnMut(&Download, u64),
    ) -> Result<Attempt> {
        let mut hash = Sha256::new();
        part.seek(SeekFrom::Start(0)).map_err(Error::io(&self.part, "read"))?;
        hash_into(&mut hash, part, have).map_err(Error::io(&self.part, "read"))?;
        progress(self.file, have);
        let mut done = have;
        if done < self.file.bytes {
            let mut request = self.agent.get(&self.url);
            if have > 0 {
                request = request.header("Range", format!("bytes={have}-"));
            }
            let mut response = request.call().map_err(|error| {
                if have == 0 {
                    self.throw_away();
                }
                Error::io(&self.url, "download")(error.into_io())
            })?;
            match response.status().as_u16() {
                200 => {
                    if have > 0 {
                        // The server ignores ranges and sends everything.
                        hash = Sha256::new();
                        done = 0;
                        part.set_len(0).map_err(Error::io(&self.part, "write"))?;
                        progress(self.file, 0);
                    }
                }
                206 if have > 0 && starts_at(response.headers().get("content-range"), have) => {}
                206 | 416 => return Ok(Attempt::CannotContinue),
                status => {
                    if have == 0 {
                        self.throw_away();
                    }
                    return Err(Error::Failed(format!(
                        "cannot download {}: the server answers with status {status}; check the address",
                        self.url
                    )));
                }
            }
            part.seek(SeekFrom::Start(done)).map_err(Error::io(&self.part, "write"))?;
            let mut body = response.body_mut().as_reader();
            let mut buffer = vec![0u8; 64 << 10];
            while let Some(received) = self.receive(&mut body, &mut buffer, done)? {
                if received.len() as u64 > self.file.bytes - done {
                    self.throw_away();
                    return Err(Error::format(
                        &self.url,
                        "",
                        format!(
                            "the server sends more than the expected {} bytes; the download was stopped and \
                             thrown away. Use another address",
                            self.file.bytes
                        ),
                    ));
                }
                part.write_all(received).map_err(Error::io(&self.part, "write"))?;
                hash.update(received);
                done += received.len() as u64;
                progress(self.file, done);
            }
            if done < self.file.bytes {
                return Err(self.cut_off(done, "the server closed the connection"));
            }
        }
        let sha256 = hex(hash);
        Ok(if sha256 == self.file.sha256 { Attempt::Whole } else { Attempt::Wrong { sha256 } })
    }

    /// The next bytes of the body, none at its end.
    fn receive<'b>(&self, body: &mut impl Read, buffer: &'b mut [u8], done: u64) -> Result<Option<&'b [u8]>> {
        loop {
            match body.read(buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => return Ok(buffer.get(..n)),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cut_off(done, &error.to_string())),
            }
        }
    }

    fn cut_off(&self, done: u64, why: &str) -> Error {
        Error::Failed(format!(
            "the download of {} broke off after {done} of {} bytes ({why}); what arrived is kept in {}. Run the \
             same command again to continue",
            self.url,
            self.file.bytes,
            self.part.display()
        ))
    }
}

/// Hashes the next `bytes` bytes of a file.
fn hash_into(hash: &mut Sha256, file: &mut File, bytes: u64) -> std::io::Result<()> {
    let mut buffer = vec![0u8; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..wanted])?;
        hash.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    Ok(())
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// True if a `Content-Range` header says that the body starts at byte `start`.
fn starts_at(content_range: Option<&ureq::http::HeaderValue>, start: u64) -> bool {
    content_range
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().strip_prefix("bytes "))
        .and_then(|range| range.split_once('-'))
        .is_some_and(|(first, _)| first.trim().parse() == Ok(start))
}
