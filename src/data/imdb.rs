//! Keras' IMDB archive and archives of the same layout: `x_train, y_train` and, optionally, `x_test, y_test`.
//!
//! An x of pickled rows holds word ranks and is prepared as Keras' `load_data(num_words)` does it, rows in the
//! file's order. An x that is a two-dimensional integer array was prepared before it was saved, padding included,
//! and is taken as it is.

use super::npz::{Array, NpzArchive, Values};
use super::{INDEX_FROM, OOV, START, Sequences};
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
    let test = match (archive.contains("x_test"), archive.contains("y_test")) {
        (true, true) => true,
        (false, false) => false,
        (x, _) => {
            let (there, missing) = if x { ("x_test", "y_test") } else { ("y_test", "x_test") };
            return Err(Error::format(
                archive.path(),
                "",
                format!(
                    "there is {there} but no {missing}; save both, or neither to train without a test set"
                ),
            ));
        }
    };
    let train = part(archive, "x_train", "y_train", num_words)?;
    let test = if test { Some(part(archive, "x_test", "y_test", num_words)?) } else { None };
    Ok(Archive { train, test })
}

fn part<R: Read + Seek>(
    archive: &mut NpzArchive<R>,
    x_name: &str,
    y_name: &str,
    num_words: usize,
) -> Result<LabelledInputs> {
    let x = archive.read(x_name)?;
    let x = inputs(x, num_words).map_err(|message| archive.error(x_name, message))?;
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
fn inputs(x: Array, num_words: usize) -> Result<Inputs, String> {
    match (x.values, &x.shape[..]) {
        (Values::Rows(rows), _) => sequences(&rows, num_words).map(Inputs::Ragged),
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

fn sequences(rows: &Sequences<i64>, num_words: usize) -> Result<Sequences, String> {
    // Keras drops what is not below num_words after it has shifted, the start included.
    let num_words = i64::try_from(num_words).unwrap_or(i64::MAX);
    let keep = |id: i64| match u32::try_from(id) {
        Ok(kept) if id < num_words => Some(kept),
        _ if id < num_words => None,
        _ => Some(OOV),
    };
    let start = keep(i64::from(START)).unwrap_or(OOV);
    let mut sequences = Sequences::new();
    for (k, row) in rows.iter().enumerate() {
        let mut wrong = None;
        let ids = row.iter().map_while(|&rank| {
            let id = if rank < 0 { None } else { keep(rank.saturating_add(i64::from(INDEX_FROM))) };
            wrong = if id.is_none() { Some(rank) } else { None };
            id
        });
        sequences.push(std::iter::once(start).chain(ids));
        if let Some(rank) = wrong {
            return Err(format!(
                "row {k} holds {rank}, expected word ranks from 0 to {}",
                u32::MAX - INDEX_FROM
            ));
        }
    }
    Ok(sequences)
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
