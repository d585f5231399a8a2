//! Run folders: `runs/<number>-<data>/` with the best and the last model and a report.

use crate::error::{Error, Result};
use crate::files;
use std::fs;
use std::path::{Path, PathBuf};

/// The model of the best epoch.
pub const BEST: &str = "best.safetensors";
/// The model of the last epoch, or of the moment a training was stopped.
pub const LAST: &str = "last.safetensors";
/// Configuration, device and every epoch's figures.
pub const REPORT: &str = "report.json";

/// One training's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    folder: PathBuf,
}

impl Run {
    /// Makes the next folder in `runs`.
    pub fn create(runs: &Path, data_name: &str) -> Result<Self> {
        fs::create_dir_all(runs).map_err(Error::io(runs, "create"))?;
        let mut number = numbered(runs)?.last().map_or(0, |(number, _)| *number);
        loop {
            number = number.saturating_add(1);
            let folder = runs.join(format!("{number}-{data_name}"));
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(Self { folder }),
                // Another training took the number a moment ago.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < u64::MAX => {}
                Err(error) => return Err(Error::io(&folder, "create")(error)),
            }
        }
    }

    /// The run folder that a model file lies in, if it does.
    pub fn of_model(model: &Path) -> Option<Self> {
        let name = model.file_name()?;
        let folder = model.parent()?;
        let in_run = (name == LAST || name == BEST) && number_of(folder.file_name()?.to_str()?).is_some();
        in_run.then(|| Self { folder: folder.to_path_buf() })
    }

    /// The model that `predict`, `eval` and `export` take: the newest run's best one, or its last.
    pub fn newest_model(runs: &Path) -> Result<PathBuf> {
        for (_, folder) in numbered(runs)?.into_iter().rev() {
            for name in [BEST, LAST] {
                let model = folder.join(name);
                if model.is_file() {
                    return Ok(model);
                }
            }
        }
        Err(Error::Failed(format!(
            "there is no trained model in {}; train one with `recurve train`, or name one with --model",
            runs.display()
        )))
    }

    /// Removes what a process that was killed while it wrote has left beside the files. Nothing else may be training
    /// in the folder.
    pub fn remove_leftovers(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder).map_err(Error::io(&self.folder, "read"))? {
            let entry = entry.map_err(Error::io(&self.folder, "read"))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if [BEST, LAST, REPORT].iter().any(|file| files::is_leftover(name, file)) {
                fs::remove_file(entry.path()).map_err(Error::io(entry.path(), "remove"))?;
            }
        }
        Ok(())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the best model is kept.
    pub fn best(&self) -> PathBuf {
        self.folder.join(BEST)
    }

    /// Where the last model is kept.
    pub fn last(&self) -> PathBuf {
        self.folder.join(LAST)
    }

    /// Where the report is kept.
    pub fn report(&self) -> PathBuf {
        self.folder.join(REPORT)
    }
}

fn number_of(folder_name: &str) -> Option<u64> {
    folder_name.split_once('-')?.0.parse().ok()
}

/// The run folders in the order of their numbers; none if `runs` does not exist.
fn numbered(runs: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(runs, "read")(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io(runs, "read"))?;
        if let Some(number) = entry.file_name().to_str().and_then(number_of) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_up_and_the_newest_model_wins() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        assert!(Run::newest_model(&runs).unwrap_err().to_string().contains("recurve train"));
        for _ in 0..11 {
            Run::create(&runs, "sample").unwrap();
        }
        let ninth = Run { folder: runs.join("9-sample") };
        let eleventh = Run { folder: runs.join("11-sample") };
        fs::write(ninth.best(), b"").unwrap();
        assert_eq!(Run::newest_model(&runs).unwrap(), ninth.best());
        fs::write(eleventh.last(), b"").unwrap();
        assert_eq!(Run::newest_model(&runs).unwrap(), eleventh.last());
        fs::write(eleventh.best(), b"").unwrap();
        assert_eq!(Run::newest_model(&runs).unwrap(), eleventh.best());
        fs::write(eleventh.folder().join(".last.safetensors.77.tmp"), b"half").unwrap();
        fs::write(eleventh.folder().join(".last.safetensors.mine.tmp"), b"not ours").unwrap();
        eleventh.remove_leftovers().unwrap();
        assert_eq!(fs::read_dir(eleventh.folder()).unwrap().count(), 3);
        assert_eq!(Run::of_model(&eleventh.last()), Some(eleventh));
        assert_eq!(Run::of_model(Path::new("model.safetensors")), None);
    }
}
