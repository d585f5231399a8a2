//! The one error type. Each message says what was being done, what was found, what was expected and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// What every fallible function of the crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that a user, a file or a device can cause. Its `Display` is a sentence for a person.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An array handed to an operation does not have the extent that its dimensions ask for.
    Shape {
        /// The operation, e.g. `lstm_sequence_forward`.
        op: &'static str,
        /// The argument, e.g. `w [E,4H]`.
        what: &'static str,
        /// Elements (or the value) that the dimensions ask for.
        expected: String,
        /// What was handed over.
        found: String,
    },
    /// A flag or a configuration value that cannot be used: wrong usage (exit code 2 on the command line).
    Usage {
        /// The flag or field, e.g. `--classes`.
        what: String,
        /// What was found and why it cannot be used, and what to do instead.
        message: String,
    },
    /// A file that can be read but does not hold what it should.
    Format {
        /// The file.
        path: PathBuf,
        /// Where in it: a line, an archive member, a byte; empty when the whole file is meant.
        place: String,
        /// What was found, what was expected, what to do.
        message: String,
    },
    /// The operating system refused to read or write something.
    Io {
        /// The file or address.
        path: PathBuf,
        /// The verb: `read`, `write`, `create`, `rename`, …
        doing: &'static str,
        /// The system's own answer.
        source: std::io::Error,
    },
    /// A device that is missing or cannot do what was asked.
    Device {
        /// The device as the user named it.
        device: String,
        /// What was found and what to do.
        message: String,
    },
    /// Training left the numbers: a loss became NaN or infinite.
    Diverged {
        /// 1-based epoch.
        epoch: u32,
        /// Steps of that epoch done when it was seen.
        batch: u64,
        /// The loss that was seen.
        loss: f64,
        /// The last good model file, if one was written.
        kept: Option<PathBuf>,
    },
    /// The user asked to stop (Ctrl-C); the state was saved where one is named.
    Interrupted {
        /// The model file from which `--resume` continues.
        saved: Option<PathBuf>,
    },
    /// Any other failure, as a sentence.
    Failed(String),
}

impl Error {
    /// A [`Error::Usage`] about `what` (a flag or field).
    pub fn usage(what: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Usage { what: what.into(), message: message.into() }
    }
    /// A [`Error::Format`] about the file `path` at `place` (may be empty).
    pub fn format(path: impl AsRef<Path>, place: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), place: place.into(), message: message.into() }
    }
    /// A closure for `map_err` that keeps the path and the verb with the system's answer.
    pub fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, doing, source }
    }
    /// A [`Error::Device`].
    pub fn device(device: impl Into<String>, message: impl Into<String>) -> Self {
        Error::Device { device: device.into(), message: message.into() }
    }
    /// True where the command line was used wrongly (exit code 2), false where the work failed (1).
    pub fn is_usage(&self) -> bool {
        matches!(self, Error::Usage { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape { op, what, expected, found } => {
                write!(f, "{op}: {what} must be {expected}, found {found}")
            }
            Error::Usage { what, message } => write!(f, "{what}: {message}"),
            Error::Format { path, place, message } if place.is_empty() => {
                write!(f, "{}: {message}", path.display())
            }
            Error::Format { path, place, message } => write!(f, "{}, {place}: {message}", path.display()),
            Error::Io { path, doing, source } => write!(f, "cannot {doing} {}: {source}", path.display()),
            Error::Device { device, message } => write!(f, "device {device}: {message}"),
            Error::Diverged { epoch, batch, loss, kept } => {
                write!(
                    f,
                    "training diverged: the loss became {loss} in epoch {epoch}, by batch {batch}. \
                     Try a smaller --lr."
                )?;
                match kept {
                    Some(path) => write!(f, " The last good model is kept in {}.", path.display()),
                    None => write!(f, " No model had been written yet."),
                }
            }
            Error::Interrupted { saved: Some(path) } => {
                write!(f, "interrupted; continue with: recurve train --resume {}", path.display())
            }
            Error::Interrupted { saved: None } => write!(f, "interrupted"),
            Error::Failed(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
