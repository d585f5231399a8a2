//! `recurve fetch`.

use super::progress::Progress;
use clap::{Args, ValueEnum};
use recurve::Result;
use recurve::data::{data_folder, fetch};
use std::path::PathBuf;

/// Arguments of `recurve fetch`.
#[derive(Args, Debug)]
pub struct FetchArgs {
    /// What to download
    #[arg(value_enum)]
    what: What,
    /// Address of the folder that holds the files, for a mirror
    #[arg(long, value_name = "URL", default_value = fetch::KERAS_URL)]
    url: String,
    /// Where to put them [default: recurve's data folder: RECURVE_DATA, else the platform's]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

/// Known data sets.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Keras' IMDB reviews and their word index, 19 MB
    Imdb,
}

pub fn run(args: &FetchArgs) -> Result<()> {
    let What::Imdb = args.what;
    let folder = match &args.into {
        Some(folder) => folder.clone(),
        None => data_folder()?,
    };
    let mut progress = Progress::new();
    let mut current = "";
    let fetched = fetch::fetch(&args.url, &fetch::IMDB_FILES, &folder, &mut |file, done| {
        if current != file.name {
            progress.clear();
            current = file.name;
        }
        progress.bytes(file.name, done, file.bytes);
    });
    progress.clear();
    for path in fetched? {
        super::say(path.display())?;
    }
    if args.into.is_none() {
        super::say("`recurve train` uses them from now on.")?;
    }
    Ok(())
}
