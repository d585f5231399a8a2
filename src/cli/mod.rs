//! Parse, call the library, report errors; one file for each subcommand.

mod completions;
mod eval;
mod export;
#[cfg(feature = "fetch")]
mod fetch;
mod info;
#[cfg(feature = "plot")]
mod plot;
mod predict;
mod progress;
mod train;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use recurve::backend::{Device, Engine, Parts, Precision};
use recurve::checkpoint::Checkpoint;
use recurve::data::text::Vocabulary;
use recurve::data::{Words, imdb_vocabulary};
use recurve::interchange::load_model;
use recurve::run::Run;
use recurve::{Error, Result};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Train, evaluate and use recurrent text classifiers.
#[derive(Parser, Debug)]
#[command(name = "recurve", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train a classifier; without arguments on the data at hand
    Train(Box<train::TrainArgs>),
    /// Measure a model on its test part, or on a file
    Eval(eval::EvalArgs),
    /// Classify raw text: arguments, lines of standard input, or a file
    Predict(predict::PredictArgs),
    /// Write a model for other programs: Keras, PyTorch, ONNX, NumPy
    Export(export::ExportArgs),
    /// Show what this program and its models are
    Info(info::InfoArgs),
    /// Draw loss and accuracy of one or more trainings
    #[cfg(feature = "plot")]
    Plot(plot::PlotArgs),
    /// Download data
    #[cfg(feature = "fetch")]
    Fetch(fetch::FetchArgs),
    /// Print a shell's completions, e.g. `recurve completions bash > ~/.local/share/bash-completion/completions/recurve`
    Completions(completions::CompletionsArgs),
}

/// Which model: shared by every command that uses one.
#[derive(Args, Debug)]
struct ModelArgs {
    /// Model file, or one of Keras' (.keras, .weights.h5) or PyTorch's (.safetensors) [default: the best model of the
    /// newest run]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Words of a model that holds none: `imdb`, or a JSON file of word to rank as Keras' imdb_word_index.json
    #[arg(long, value_name = "WORDS")]
    words: Option<PathBuf>,
    /// Folder of the runs
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
}

impl ModelArgs {
    fn path(&self) -> Result<PathBuf> {
        match &self.model {
            Some(path) => Ok(path.clone()),
            None => Run::newest_model(&self.runs),
        }
    }

    fn load(&self) -> Result<(PathBuf, Checkpoint)> {
        let path = self.path()?;
        let mut checkpoint = load_model(&path)?;
        if let Some(words) = &self.words {
            let vocab = checkpoint.model.config.vocab;
            checkpoint.encoding.words = match checkpoint.encoding.words {
                Words::Known(_) => {
                    return Err(Error::usage("--words", format!("{} has words of its own", path.display())));
                }
                _ if words.as_os_str() == "imdb" => {
                    imdb_vocabulary(vocab)?.map_or(Words::ImdbIndex, Words::Known)
                }
                _ => Words::Known(Vocabulary::from_word_index(words, vocab)?),
            };
        }
        Ok((path, checkpoint))
    }
}

/// Where to compute: shared by every command that does.
#[derive(Args, Debug)]
struct DeviceArgs {
    /// What computes: auto, cpu, reference, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
    /// Threads that compute, 0 to 256; 0 is one for each core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = in_range(0, 256))]
    threads: usize,
}

impl DeviceArgs {
    fn engine_in(&self, precision: Precision) -> Result<Box<dyn Engine>> {
        self.device.engine_in(precision, self.threads)
    }

    /// An engine of this precision that holds a model and `parts`.
    fn engine_with(
        &self,
        precision: Precision,
        checkpoint: &Checkpoint,
        parts: Parts<'_>,
    ) -> Result<Box<dyn Engine>> {
        let mut engine = self.engine_in(precision)?;
        engine.load(&checkpoint.model, &checkpoint.state, checkpoint.adam, parts)?;
        Ok(engine)
    }
}

/// A value parser for whole numbers from `min` to `max`.
fn in_range(
    min: usize,
    max: usize,
) -> impl Fn(&str) -> std::result::Result<usize, String> + Clone + Send + Sync {
    move |text| match text.parse() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        _ => Err(format!("expected a whole number from {min} to {max}")),
    }
}

/// A value parser for fractions of at least 0 and below 1.
fn fraction(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..1.0).contains(&x) => Ok(x),
        _ => Err("expected a number of at least 0 and below 1".to_string()),
    }
}

/// Writes a line to standard output. A closed pipe (`recurve predict | head`) ends the program quietly.
fn say(line: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::io("standard output", "write")(error)),
    }
}

/// Set by Ctrl-C.
fn interrupted() -> &'static AtomicBool {
    static FLAG: OnceLock<AtomicBool> = OnceLock::new();
    FLAG.get_or_init(AtomicBool::default)
}

/// From now on the first Ctrl-C asks for a stop with everything saved, the second ends the program at once.
fn heed_ctrl_c() -> Result<()> {
    ctrlc::set_handler(|| {
        if interrupted().swap(true, Ordering::SeqCst) {
            std::process::exit(1);
        }
        eprintln!(
            "\nstopping: the state is saved after the batches in flight (Ctrl-C again to quit at once)"
        );
    })
    .map_err(|error| Error::Failed(format!("cannot listen for Ctrl-C: {error}")))
}

/// Runs the program: exit code 0 done, 1 failed work, 2 wrong usage.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        // clap prints help and version with code 0, wrong usage with 2.
        Err(error) => error.exit(),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let done = match &cli.command {
        Command::Train(args) => {
            let given = matches.subcommand().map(|(_, matches)| Given::new(matches)).unwrap_or_default();
            train::run(args, &given)
        }
        Command::Eval(args) => eval::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Export(args) => export::run(args),
        Command::Info(args) => info::run(args),
        #[cfg(feature = "plot")]
        Command::Plot(args) => plot::run(args),
        #[cfg(feature = "fetch")]
        Command::Fetch(args) => fetch::run(args),
        Command::Completions(args) => completions::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("recurve: {error}");
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

/// Which flags the user typed, as opposed to those that have their default.
#[derive(Debug, Default)]
struct Given(Vec<String>);

impl Given {
    fn new(matches: &clap::ArgMatches) -> Self {
        let typed = |id: &str| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
        Self(matches.ids().map(|id| id.as_str().to_string()).filter(|id| typed(id)).collect())
    }

    /// Was the flag of this field typed?
    fn has(&self, field: &str) -> bool {
        self.0.iter().any(|id| id == field)
    }
}
