//! What every engine refuses, in the same words.

use super::{Extent, Part, StepState, TrainState};
use crate::error::{Error, Result};
use crate::model::Model;

/// The error of an engine that nothing was loaded into.
pub(crate) fn no_model() -> Error {
    Error::Failed("the engine holds no model; call load first".into())
}

/// The error of a step without training rows.
pub(crate) fn no_training_examples() -> Error {
    Error::Failed("the engine holds no training examples; load it with Parts::train".into())
}

/// The error of an evaluation of a part that was not loaded.
pub(crate) fn no_examples(part: Part) -> Error {
    Error::Failed(format!("the engine holds no {part:?} examples; load it with Parts"))
}

/// Checks that a state's arenas have the model's length.
pub(crate) fn state(model: &Model, state: &TrainState) -> Result<()> {
    let n = model.table.len();
    for (what, arena) in [("params", &state.params), ("m", &state.m), ("v", &state.v)] {
        if Extent::len(arena) != n {
            return Err(Error::Shape {
                op: "engine",
                what,
                expected: format!("{n} elements (the model's parameters)"),
                found: arena.len().to_string(),
            });
        }
    }
    Ok(())
}

/// Checks that there is one usable weight a class.
pub(crate) fn class_weights(model: &Model, weights: Option<&[f32]>) -> Result<()> {
    let Some(weights) = weights else { return Ok(()) };
    let shape = |expected: String, found: String| {
        Err(Error::Shape { op: "engine", what: "class_weights [C]", expected, found })
    };
    if weights.len() != model.config.classes {
        return shape(format!("{} elements, one a class", model.config.classes), weights.len().to_string());
    }
    match weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        None => Ok(()),
        Some(at) => shape("numbers of at least 0".to_string(), format!("{} at index {at}", weights[at])),
    }
}

/// The batch of a step: its rows of the epoch's order.
pub(crate) fn batch<'a>(order: &'a [u32], step: &StepState) -> Result<&'a [u32]> {
    let start = step.batch_start as usize;
    order.get(start..start.saturating_add(step.rows as usize)).ok_or_else(|| Error::Shape {
        op: "train",
        what: "step",
        expected: format!("rows within the order's {}; call set_order for each epoch", order.len()),
        found: format!("{} rows from {start}", step.rows),
    })
}

/// Checks that a batch's rows are among the `examples` that there are.
pub(crate) fn rows(batch: &[u32], examples: usize) -> Result<()> {
    match batch.iter().position(|&row| row as usize >= examples) {
        None => Ok(()),
        Some(at) => Err(Error::Shape {
            op: "gather",
            what: "rows [B]",
            expected: format!("below {examples}, the number of examples, at every index"),
            found: format!("{} at index {at}", batch[at]),
        }),
    }
}

/// `T` of `rows` rows of ids to predict; `rows` is not 0.
pub(crate) fn width(x: &[u32], rows: usize) -> Result<usize> {
    let t = x.len() / rows;
    if t == 0 || t * rows != x.len() {
        return Err(Error::Shape {
            op: "predict",
            what: "x [rows,T]",
            expected: format!("a multiple of {rows} ids, at least one a row"),
            found: x.len().to_string(),
        });
    }
    Ok(t)
}
