//! `recurve predict`.

use super::{DeviceArgs, ModelArgs, say};
use clap::Args;
use recurve::backend::{Engine, Parts, Precision};
use recurve::checkpoint::Checkpoint;
use recurve::data::table::{self, Value};
use recurve::data::{Encoding, Words, imdb_vocabulary};
use recurve::metrics::argmax;
use recurve::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

/// Arguments of `recurve predict`.
#[derive(Args, Debug)]
pub struct PredictArgs {
    /// Texts, each quoted; without any, every line of standard input is one and is answered at once
    #[arg(value_name = "TEXT", conflicts_with = "input")]
    texts: Vec<String>,
    /// File of texts (.csv, .tsv or .jsonl)
    #[arg(long, value_name = "FILE", requires = "output")]
    input: Option<PathBuf>,
    /// File to write: the input's columns and rows, with `predicted` and a `p_CLASS` for each class appended
    #[arg(long, value_name = "FILE", requires = "input")]
    output: Option<PathBuf>,
    /// Column of --input that holds the text [default: as in training]
    #[arg(long, value_name = "NAME", requires = "input")]
    text_column: Option<String>,
    /// Print one JSON object a text
    #[arg(long, conflicts_with = "input")]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// What multiplications read: f32, bf16 or f16 (cuda and reference), whatever the model was trained in
    #[arg(long, value_name = "TYPE", default_value_t = Precision::F32)]
    precision: Precision,
}

/// How the model reads text: by its own words, or by the IMDB word index if that has come to hand since.
pub fn encoding(checkpoint: &Checkpoint) -> Result<Encoding> {
    let mut encoding = checkpoint.encoding.clone();
    if encoding.words == Words::ImdbIndex
        && let Some(vocabulary) = imdb_vocabulary(checkpoint.model.config.vocab)?
    {
        encoding.words = Words::Known(vocabulary);
    }
    Ok(encoding)
}

/// One line of `--json`.
#[derive(Serialize)]
struct Answer<'a> {
    text: &'a str,
    label: &'a str,
    probabilities: BTreeMap<&'a str, f64>,
}

/// The f64 that is written with an f32's digits: 0.1 and not 0.10000000149011612.
fn short(p: f32) -> f64 {
    match Value::from(p) {
        Value::Number(number) => number,
        Value::Text(_) => f64::from(p),
    }
}

struct Predictor {
    engine: Box<dyn Engine>,
    encoding: Encoding,
    classes: Vec<String>,
}

impl Predictor {
    /// Each text's probabilities.
    fn answer<'a>(&mut self, texts: impl ExactSizeIterator<Item = &'a str>) -> Result<Vec<Vec<f32>>> {
        let rows = texts.len();
        let x = self.encoding.rows(texts)?;
        let probabilities = self.engine.predict(&x, rows)?;
        Ok(probabilities.chunks_exact(self.classes.len()).map(<[f32]>::to_vec).collect())
    }

    fn print(&mut self, text: &str, json: bool) -> Result<()> {
        let probabilities = self.answer(std::iter::once(text))?.pop().unwrap_or_default();
        let best = argmax(&probabilities);
        if !json {
            return say(format!("{}  {:.4}  {text}", self.classes[best], probabilities[best]));
        }
        let probabilities =
            self.classes.iter().zip(&probabilities).map(|(class, &p)| (class.as_str(), short(p)));
        let answer = Answer { text, label: &self.classes[best], probabilities: probabilities.collect() };
        let json = serde_json::to_string(&answer)
            .map_err(|error| Error::Failed(format!("the answer cannot be written as JSON: {error}")))?;
        say(json)
    }
}

pub fn run(args: &PredictArgs) -> Result<()> {
    let (_, checkpoint) = args.model.load()?;
    let engine = args.device.engine_with(args.precision, &checkpoint, Parts::default())?;
    let encoding = encoding(&checkpoint)?;
    // Refused before anything is read or written, not at the first text.
    encoding.rows([""])?;
    let mut predictor = Predictor { engine, encoding, classes: checkpoint.classes.clone() };

    if let (Some(input), Some(output)) = (&args.input, &args.output) {
        let column = args.text_column.as_ref().unwrap_or(&checkpoint.data.text_column);
        let mut added = vec!["predicted".to_string()];
        added.extend(checkpoint.classes.iter().map(|class| format!("p_{class}")));
        let rows = table::annotate(input, output, column, &added, &mut |texts| {
            let answers = predictor.answer(texts.iter().map(String::as_str))?;
            Ok(answers
                .into_iter()
                .map(|probabilities| {
                    let label = predictor.classes[argmax(&probabilities)].clone();
                    std::iter::once(Value::Text(label))
                        .chain(probabilities.iter().map(|&p| Value::from(p)))
                        .collect()
                })
                .collect())
        })?;
        return say(format!("{}: {rows} rows", output.display()));
    }
    if !args.texts.is_empty() {
        return args.texts.iter().try_for_each(|text| predictor.print(text, args.json));
    }
    let stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        eprintln!("recurve: type a text and press Enter; end with Ctrl-D");
    }
    for line in stdin.lines() {
        let line = line.map_err(Error::io("standard input", "read"))?;
        predictor.print(&line, args.json)?;
    }
    Ok(())
}
