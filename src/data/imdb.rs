//! Keras' IMDB archive and archives of the same layout: `x_train, y_train` and, optionally, `x_test, y_test`.
//!
//! An x of pickled rows holds word ranks and is prepared as Keras' `load_data(num_words)` does it, rows in the
//! file's order. An x that is a two-dimensional integer array was prepared before it was saved, padding included,
//! and is taken as it is.

use super::batch::Side;
use super::npz::{Array, NpzArchive, Values};
use super::pickle::RowSink;
use super::{DataOptions, INDEX_FROM, OOV, START, Sequences};
use crate::error::{Error, Result};
use std::io::{Read, Seek};
use std::path::Path;

/// The inputs of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Lists of word ranks, already turned into ids: `[START] + (rank + INDEX_FROM)`, ids ≥ `num_words` as `OOV`.
    Ragged(Sequences),
    /// Prepared ids `[N,T]`, taken as they are.
    Padded {
        /// `[N,T]`
        ids: Vec<u32>,
        /// Width.
        t: usize,
    },
}

impl Inputs {
    /// Rows, `N`.
    pub fn rows(&self) -> usize {
        match self {
            Inputs::Ragged(sequences) => sequences.len(),
            // A width of 0 is refused on load.
            Inputs::Padded { ids, t } => ids.len() / (*t).max(1),
        }
    }
}

/// One part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledInputs {
    /// Inputs.
    pub x: Inputs,
    /// Labels as stored, which must be non-negative.
    pub y: Vec<u32>,
}

/// A whole archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// `x_train, y_train`
    pub train: LabelledInputs,
    /// `x_test, y_test`, where the archive has both.
    pub test: Option<LabelledInputs>,
}

/// What is kept of a longer list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    All,
    /// At most so many ids, cut on the given side.
    AtMost(usize, Side),
}

/// Reads an archive with Keras' `load_data` semantics. Ids of prepared inputs are not compared with `num_words`.
///
/// # Errors
/// [`Error::Format`] with the member and the row if the archive is damaged, if x and y do not belong together, or if
/// a part has no rows.
pub fn load(path: &Path, num_words: usize) -> Result<Archive> {
    read(&mut NpzArchive::open(path)?, num_words)
}

/// The same from an open archive.
pub fn read<R: Read + Seek>(archive: &mut NpzArchive<R>, num_words: usize) -> Result<Archive> {
    let test = has_test(archive)?;
    let train = part(archive, "x_train", "y_train", num_words, Keep::All)?;
    let test = if test { Some(part(archive, "x_test", "y_test", num_words, Keep::All)?) } else { None };
    Ok(Archive { train, test })
}

/// The same, for rows that are going to be padded and cut to `maxlen` ids: longer lists are cut on the `truncating`
/// side already. Where `maxlen` is open, it is [`DataOptions::MAXLEN`] if `x_train` holds lists; if not, the lists
/// that `x_test` may hold are kept whole. The test part is read by a thread of its own.
///
/// # Errors
/// As [`load`]'s.
pub fn load_cut(path: &Path, num_words: usize, maxlen: Option<usize>, truncating: Side) -> Result<Archive> {
    let mut archive = NpzArchive::open(path)?;
    let keep = match maxlen {
        Some(maxlen) => Keep::AtMost(maxlen, truncating),
        None if archive.holds_objects("x_train") => Keep::AtMost(DataOptions::MAXLEN, truncating),
        None => Keep::All,
    };
    if !has_test(&archive)? {
        return Ok(Archive { train: part(&mut archive, "x_train", "y_train", num_words, keep)?, test: None });
    }
    // Opened before either part is read, so that both are of one file.
    let mut again = NpzArchive::open(path)?;
    let mut test = || part(&mut again, "x_test", "y_test", num_words, keep);
    std::thread::scope(|scope| {
        let beside = std::thread::Builder::new().name("recurve-load".into());
        let beside =
            beside.spawn_scoped(scope, &mut test).map_err(Error::io(path, "start a thread to read"))?;
        let train = part(&mut archive, "x_train", "y_train", num_words, keep);
        let test = beside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Of two faults the training part's is told.
        Ok(Archive { train: train?, test: Some(test?) })
    })
}

/// True if there is a test part.
fn has_test<R: Read + Seek>(archive: &NpzArchive<R>) -> Result<bool> {
    match (archive.contains("x_test"), archive.contains("y_test")) {
        (true, true) => Ok(true),
        (false, false) => Ok(false),
        (x, _) => {
            let (there, missing) = if x { ("x_test", "y_test") } else { ("y_test", "x_test") };
            Err(Error::format(
                archive.path(),
                "",
                format!(
                    "there is {there} but no {missing}; save both, or neither to train without a test set"
                ),
            ))
        }
    }
}

fn part<R: Read + Seek>(
    archive: &mut NpzArchive<R>,
    x_name: &str,
    y_name: &str,
    num_words: usize,
    keep: Keep,
) -> Result<LabelledInputs> {
    let x = archive.read_rows(x_name, Ids::new(num_words, keep))?;
    let x = inputs(x).map_err(|message| archive.error(x_name, message))?;
    let y = archive.read(y_name)?;
    let y = labels(y).map_err(|message| archive.error(y_name, message))?;
    if x.rows() != y.len() {
        return Err(archive.error(
            y_name,
            format!("{} labels for the {} rows of {x_name}; there must be one for each", y.len(), x.rows()),
        ));
    }
    if y.is_empty() {
        return Err(archive.error(x_name, "the array has no rows; at least one is needed"));
    }
    Ok(LabelledInputs { x, y })
}

/// Errors here are messages: the caller knows the file and the member.
fn inputs(x: Array<Ids>) -> Result<Inputs, String> {
    match (x.values, &x.shape[..]) {
        (Values::Rows(ids), _) => ids.finish().map(Inputs::Ragged),
        (Values::Int(values), &[_, t]) if t > 0 => {
            let mut ids = Vec::with_capacity(values.len());
            for (at, &id) in values.iter().enumerate() {
                ids.push(u32::try_from(id).map_err(|_| {
                    format!("row {}, column {} holds id {id}, expected 0 to {}", at / t, at % t, u32::MAX)
                })?);
            }
            Ok(Inputs::Padded { ids, t })
        }
        (Values::Int(_), shape) => Err(format!(
            "an integer array of shape {shape:?}, expected ids [rows, width] or an object array of lists of ranks"
        )),
        (Values::Float(_), _) => Err("floats, expected ids or lists of ranks; convert with \
                                      x.astype('int32')"
            .to_string()),
    }
}

/// The id of a rank; none if it has none.
fn id_of(rank: i64, num_words: i64) -> Option<u32> {
    if rank < 0 { None } else { below(rank.saturating_add(i64::from(INDEX_FROM)), num_words) }
}

/// The id, or [`OOV`] in its place.
fn below(id: i64, num_words: i64) -> Option<u32> {
    if id < num_words { u32::try_from(id).ok() } else { Some(OOV) }
}

/// Turns ranks into ids as they come out of the pickle.
struct Ids {
    sequences: Sequences,
    keep: Keep,
    /// Keras drops what is not below it after it has shifted, the start included.
    num_words: i64,
    /// The first row with a number that is no rank, and the number. A fault in the pickle goes before it.
    wrong: Option<(usize, i64)>,
}

impl Ids {
    fn new(num_words: usize, keep: Keep) -> Self {
        let num_words = i64::try_from(num_words).unwrap_or(i64::MAX);
        Self { sequences: Sequences::new(), keep, num_words, wrong: None }
    }

    fn finish(self) -> Result<Sequences, String> {
        match self.wrong {
            None => Ok(self.sequences),
            Some((row, rank)) => Err(format!(
                "row {row} holds {rank}, expected word ranks from 0 to {}",
                u32::MAX - INDEX_FROM
            )),
        }
    }
}

impl RowSink for Ids {
    fn reserve(&mut self, rows: usize, integers: usize) {
        let all = integers.saturating_add(rows);
        let most = match self.keep {
            Keep::All => all,
            Keep::AtMost(most, _) => all.min(rows.saturating_mul(most)),
        };
        self.sequences.reserve_exact(rows, most);
    }

    fn row(&mut self, row: &[i64]) {
        if self.wrong.is_some() {
            return;
        }
        // What is cut off is looked at too.
        if let Some(&rank) = row.iter().find(|&&rank| id_of(rank, self.num_words).is_none()) {
            self.wrong = Some((self.sequences.len(), rank));
            return;
        }
        let start = below(i64::from(START), self.num_words).unwrap_or(OOV);
        let surplus = match self.keep {
            Keep::All => 0,
            Keep::AtMost(most, _) => (1 + row.len()).saturating_sub(most),
        };
        let (front, back) = match self.keep {
            Keep::AtMost(_, Side::Pre) => (surplus, 0),
            _ => (0, surplus),
        };
        // The start is the first to go at the front, and the last at the back.
        let start = Some(start).filter(|_| front == 0 && back <= row.len());
        let from = front.saturating_sub(1);
        let ranks = row.get(from..row.len().saturating_sub(back)).unwrap_or_default();
        let (num_words, sequences) = (self.num_words, &mut self.sequences);
        sequences
            .push(start.into_iter().chain(ranks.iter().map(|&rank| id_of(rank, num_words).unwrap_or(OOV))));
    }
}

fn labels(y: Array) -> Result<Vec<u32>, String> {
    match (y.values, &y.shape[..]) {
        (Values::Int(values), &[_] | &[_, 1]) => values
            .iter()
            .enumerate()
            .map(|(row, &label)| {
                u32::try_from(label)
                    .map_err(|_| format!("row {row} has label {label}, expected a class from 0 on"))
            })
            .collect(),
        (Values::Int(_), shape) => {
            Err(format!("labels of shape {shape:?}, expected one for each row: [rows]"))
        }
        (Values::Float(_), _) => {
            Err("labels that are floats, expected class indices; convert with y.astype('int64')".to_string())
        }
        (Values::Rows(_), _) => {
            Err("labels that are lists, expected class indices; convert with y.astype('int64')".to_string())
        }
    }
}
