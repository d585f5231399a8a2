//! `recurve plot`.

use clap::Args;
use recurve::checkpoint::Checkpoint;
use recurve::metrics::EpochMetrics;
use recurve::plot::{Curves, svg};
use recurve::run::{REPORT, Run};
use recurve::{Error, Result, files};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Arguments of `recurve plot`.
#[derive(Args, Debug)]
pub struct PlotArgs {
    /// Trainings to draw: run folders, reports (.json) or models (.safetensors) [default: the newest run]
    #[arg(value_name = "RUN")]
    trainings: Vec<PathBuf>,
    /// Picture to write
    #[arg(short, long, value_name = "FILE", default_value = "curves.svg")]
    output: PathBuf,
    /// Folder of the runs
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
}

/// What a picture needs of a report.
#[derive(Deserialize)]
struct Report {
    epochs: Vec<Epoch>,
}

#[derive(Deserialize)]
struct Epoch {
    epoch: u32,
    loss: f64,
    accuracy: f64,
    validation_loss: Option<f64>,
    validation_accuracy: Option<f64>,
    test_loss: Option<f64>,
    test_accuracy: Option<f64>,
}

pub fn run(args: &PlotArgs) -> Result<()> {
    if args.output.extension().is_none_or(|extension| extension != "svg") {
        return Err(Error::usage(
            "--output",
            format!("{} must end in .svg, the only format there is", args.output.display()),
        ));
    }
    let mut trainings = args.trainings.clone();
    if trainings.is_empty() {
        let newest = Run::newest_model(&args.runs)?;
        trainings.push(newest.parent().map_or(newest.clone(), Path::to_path_buf));
    }
    let mut runs = trainings.iter().map(|path| read(path)).collect::<Result<Vec<Curves>>>()?;
    for at in 0..runs.len() {
        // Two folders of one name: the whole path tells them apart.
        if runs.iter().filter(|run| run.name == runs[at].name).count() > 1 {
            runs[at].name = trainings[at].display().to_string();
        }
    }
    files::write_bytes(&args.output, svg(&runs)?.as_bytes())?;
    let epochs: Vec<String> =
        runs.iter().map(|run| format!("{} ({} epochs)", run.name, run.epochs.len())).collect();
    super::say(format!("{}: {}", args.output.display(), epochs.join(", ")))
}

/// A training's epochs, from whichever of its files is named.
fn read(path: &Path) -> Result<Curves> {
    let report = if path.is_dir() { path.join(REPORT) } else { path.to_path_buf() };
    let named = match path.file_name() {
        // The folder's name says more than that of the files which every run has.
        Some(name) if !path.is_dir() && (name == REPORT || Run::of_model(path).is_some()) => {
            path.parent().and_then(Path::file_name)
        }
        name => name,
    };
    let name = named.map_or(path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let epochs = if report.extension().is_some_and(|extension| extension == "safetensors") {
        Checkpoint::load(&report)?.progress.history
    } else {
        let bytes = std::fs::read(&report).map_err(Error::io(&report, "read"))?;
        let read: Report = serde_json::from_slice(&bytes)
            .map_err(|error| Error::format(&report, "", format!("no report of `recurve train`: {error}")))?;
        read.epochs.into_iter().map(EpochMetrics::from).collect()
    };
    if epochs.is_empty() {
        return Err(Error::format(&report, "", "no epoch was finished, so there is nothing to draw"));
    }
    Ok(Curves { name, epochs })
}

impl From<Epoch> for EpochMetrics {
    fn from(epoch: Epoch) -> Self {
        let Epoch { epoch, loss, accuracy, validation_loss, validation_accuracy, test_loss, test_accuracy } =
            epoch;
        Self { epoch, loss, accuracy, validation_loss, validation_accuracy, test_loss, test_accuracy }
    }
}
