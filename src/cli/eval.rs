//! `recurve eval`.

use super::{DeviceArgs, ModelArgs, say};
use clap::Args;
use recurve::backend::{Part, Parts, Precision};
use recurve::checkpoint::Checkpoint;
use recurve::data::{self, Examples};
use recurve::metrics::{self, Report};
use recurve::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `recurve eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// Labelled file (.npz, .csv, .tsv or .jsonl), every row of which is measured [default: the model's test part]
    #[arg(value_name = "DATA", conflicts_with = "data")]
    file: Option<PathBuf>,
    /// The same as DATA
    #[arg(long, value_name = "DATA")]
    data: Option<PathBuf>,
    /// Column that holds the text [default: as in training]
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column that holds the label [default: as in training]
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// What multiplications read: f32, bf16 or f16 (cuda and reference), whatever the model was trained in
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    precision: Precision,
}

#[derive(Serialize)]
struct Evaluation {
    model: String,
    data: String,
    device: recurve::backend::DeviceInfo,
    rows: usize,
    rows_trained_on: usize,
    loss: f64,
    accuracy: f64,
    #[serde(flatten)]
    report: Report,
}

pub fn run(args: &EvalArgs) -> Result<()> {
    let (path, checkpoint) = args.model.load()?;
    let file = args.file.as_ref().or(args.data.as_ref());
    let (name, examples) = match file {
        Some(file) => {
            let mut options = checkpoint.data.clone();
            options.num_words = checkpoint.model.config.vocab;
            options.text_column = args.text_column.clone().unwrap_or(options.text_column);
            options.label_column = args.label_column.clone().unwrap_or(options.label_column);
            let encoding = super::predict::encoding(&checkpoint)?;
            let examples = data::load_for_eval(file, &options, &encoding, &checkpoint.classes)?;
            (file.display().to_string(), examples)
        }
        None => test_part(&checkpoint)?,
    };
    let trained_on = (0..examples.rows()).filter(|&row| checkpoint.trained_on(examples.row(row))).count();

    let parts = Parts { test: Some(&examples), ..Parts::default() };
    let mut engine = args.device.engine_with(args.precision, &checkpoint, parts)?;
    let totals = engine.evaluate(Part::Test, checkpoint.options.batch_size)?;
    let probabilities = engine.predict(&examples.x, examples.rows())?;
    let evaluation = Evaluation {
        model: path.display().to_string(),
        data: name,
        device: engine.info(),
        rows: examples.rows(),
        rows_trained_on: trained_on,
        loss: totals.loss(),
        accuracy: totals.accuracy(),
        report: metrics::report(&probabilities, &examples.y, &checkpoint.classes),
    };
    // The model's own test part was held out; a row of it that looks like a training row is a short text said twice.
    if trained_on > 0 && file.is_some() {
        eprintln!(
            "recurve: warning: the model was trained on rows that look like {trained_on} of these {}; \
             its figures on them say little about new text",
            evaluation.rows
        );
    }
    if args.json {
        let json = serde_json::to_string_pretty(&evaluation)
            .map_err(|error| Error::Failed(format!("the figures cannot be written as JSON: {error}")))?;
        return say(json);
    }
    print(&evaluation)
}

/// The test part of what the model was trained on.
fn test_part(checkpoint: &Checkpoint) -> Result<(String, Examples)> {
    let dataset = checkpoint.dataset()?;
    let examples = dataset.test.ok_or_else(|| {
        Error::usage("DATA", "the model's data has no test part; name a labelled file to measure")
    })?;
    Ok((format!("test part of {}", dataset.name), examples))
}

fn print(evaluation: &Evaluation) -> Result<()> {
    let Evaluation { rows, loss, accuracy, report, .. } = evaluation;
    say(format!("{} on {}, {rows} rows", evaluation.model, evaluation.data))?;
    say(format!("Loss: {loss:.4}, Accuracy: {:.2}, Macro F1: {:.4}", 100.0 * accuracy, report.macro_f1))?;
    if let Some(auc) = report.auc {
        say(format!("AUC: {auc:.4}"))?;
    }
    let width = report.classes.iter().map(|class| class.class.chars().count()).max().unwrap_or(0).max(5);
    say(format!("\n{:width$}  {:>9}  {:>9}  {:>9}  {:>9}", "class", "rows", "precision", "recall", "F1"))?;
    for class in &report.classes {
        say(format!(
            "{:width$}  {:>9}  {:>9.4}  {:>9.4}  {:>9.4}",
            class.class, class.support, class.precision, class.recall, class.f1
        ))?;
    }
    say("\nconfusion (rows: actual, columns: predicted, in the same order)")?;
    for (class, counts) in report.classes.iter().zip(&report.confusion) {
        let counts: String = counts.iter().map(|count| format!("  {count:>9}")).collect();
        say(format!("{:width$}{counts}", class.class))?;
    }
    Ok(())
}
