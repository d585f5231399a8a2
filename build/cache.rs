//! What NVRTC has made before, kept in the folder that `RECURVE_KERNEL_CACHE` names, each under a hash of all that decides it.

use crate::nvrtc::{Compiled, Nvrtc, Target};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder, if there is one, and the compiler whose work it keeps.
pub struct Cache {
    folder: PathBuf,
    compiler: String,
}

impl Cache {
    /// None if no folder is named, or if the compiler has no file of its own to tell it from others by.
    pub fn open(folder: Option<PathBuf>, nvrtc: &Nvrtc) -> Result<Option<Self>, String> {
        let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(None) };
        let Ok(library) = fs::read(&nvrtc.library) else { return Ok(None) };
        fs::create_dir_all(&folder)
            .map_err(|e| format!("RECURVE_KERNEL_CACHE: cannot make the folder {}: {e}", folder.display()))?;
        Ok(Some(Self { folder, compiler: crate::sha256(&library) }))
    }

    /// Where a source is kept that is compiled with these headers and options.
    pub fn place(
        &self,
        name: &str,
        text: &str,
        headers: &[(String, String)],
        options: &[String],
        target: Target,
    ) -> PathBuf {
        let parts = json!([self.compiler, target.arch(), options, name, text, headers]);
        self.folder.join(crate::sha256(parts.to_string().as_bytes()))
    }
}

/// What is kept at `place`.
pub fn read(place: &Path) -> Option<Compiled> {
    let log = fs::read_to_string(place.with_extension("log")).ok()?;
    Some(Compiled { image: fs::read(place).ok()?, log })
}

/// Keeps this. The image comes last, and by a new name: where it is, both are whole. A folder that cannot be written to is no
/// reason to fail: it saves time, nothing else.
pub fn keep(place: &Path, compiled: &Compiled) {
    let beside = |extension: &str| place.with_extension(format!("{extension}{}", std::process::id()));
    let put = |bytes: &[u8], to: &Path, beside: PathBuf| {
        fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, to)).is_ok()
    };
    if put(compiled.log.as_bytes(), &place.with_extension("log"), beside("log-")) {
        put(&compiled.image, place, beside("image-"));
    }
}
