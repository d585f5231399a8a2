//! Compiles each kernel file for each target in a process of its own: NVRTC 12.1 lets threads of one process wait for each other.
//! What a process makes stays in a folder, under a hash of all that decides it, and is not made again.

use crate::nvrtc::{Compiled, Nvrtc, Target};
use crate::{Result, TABLE, Tree, Unit, sha256};
use serde_json::json;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Tell a process which file to compile, for which target, as what the compiler is known, and where the result goes.
const FILE: &str = "RECURVE_APART_FILE";
const ARCH: &str = "RECURVE_APART_ARCH";
const COMPILER: &str = "RECURVE_APART_COMPILER";
const PLACE: &str = "RECURVE_APART_PLACE";

/// Where compiled files are kept, and the compiler that made them.
pub struct Apart<'a> {
    folder: PathBuf,
    compiler: String,
    nvrtc: &'a Nvrtc,
}

impl<'a> Apart<'a> {
    /// To keep them in this folder.
    pub fn new(folder: PathBuf, nvrtc: &'a Nvrtc) -> Result<Self> {
        fs::create_dir_all(&folder)
            .map_err(|e| format!("cannot make the folder {}: {e}", folder.display()))?;
        // A library that the system's loader has found by its name cannot be told from another: nothing of it is used again.
        let program =
            Some(&nvrtc.path).filter(|path| path.is_absolute()).and_then(|path| fs::read(path).ok());
        let compiler = match program {
            Some(program) => sha256(&program),
            None => format!("{} {:?}", std::process::id(), std::time::SystemTime::now()),
        };
        Ok(Self { folder, compiler, nvrtc })
    }

    /// The file for the target, now or before.
    pub fn compile(&self, tree: &Tree, unit: &Unit, target: Target) -> Result<Compiled> {
        let place = self.folder.join(name(&self.compiler, tree, unit, target));
        if let Some(known) = kept(&place) {
            return Ok(known);
        }
        let mut process =
            Command::new(env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?);
        process
            .env(FILE, unit.file())
            .env(ARCH, target.arch())
            .env(COMPILER, &self.compiler)
            .env(PLACE, &place);
        if self.nvrtc.path.is_absolute() {
            process.env("NVRTC_PATH", &self.nvrtc.path);
        }
        // What it tells cargo is this process' to tell.
        let ended = process.stdin(Stdio::null()).stdout(Stdio::null()).output();
        let ended = ended.map_err(|e| format!("cannot start a process that compiles: {e}"))?;
        match kept(&place) {
            Some(compiled) if ended.status.success() => Ok(compiled),
            _ if ended.stderr.is_empty() => {
                Err(format!("the process that compiles ended with {}", ended.status))
            }
            _ => Err(String::from_utf8_lossy(&ended.stderr).into_owned()),
        }
    }
}

/// Whether this process was started by [`Apart::compile`].
pub fn is_asked() -> bool {
    env::var_os(PLACE).is_some()
}

/// Compiles what this process was started for; an error is NVRTC's log.
pub fn answer(nvrtc: &Nvrtc, tree: &Tree) -> Result<()> {
    let asked = |name: &str| env::var(name).map_err(|e| format!("{name}: {e}"));
    let (file, arch, place) = (asked(FILE)?, asked(ARCH)?, PathBuf::from(asked(PLACE)?));
    let unit =
        tree.units.iter().find(|unit| unit.file() == file).ok_or(format!("there is no kernels/{file}"))?;
    let cubin = TABLE.iter().map(|arch| Target::Cubin(arch));
    let target = cubin.chain([Target::Ptx(unit.baseline)]).find(|target| target.arch() == arch);
    let target = target.ok_or(format!("{arch} is no target"))?;
    if place.file_name() != Some(name(&asked(COMPILER)?, tree, unit, target).as_ref()) {
        return Err(format!(
            "kernels/{file}, or what it includes, has changed since the build began; build again"
        ));
    }
    let compiled = nvrtc.compile(&file, &unit.text, &tree.included(&unit.text), &tree.options, target)?;
    keep(&place, &compiled).map_err(|e| format!("cannot write to {}: {e}", place.display()))
}

/// What the file for the target is kept as: a hash of all that decides it.
fn name(compiler: &str, tree: &Tree, unit: &Unit, target: Target) -> String {
    let headers = tree.included(&unit.text);
    let parts = json!([compiler, target.arch(), tree.options, unit.file(), unit.text, headers]);
    sha256(parts.to_string().as_bytes())
}

fn kept(place: &Path) -> Option<Compiled> {
    let log = fs::read_to_string(place.with_extension("log")).ok()?;
    Some(Compiled { image: fs::read(place).ok()?, log })
}

/// The image comes last, and by a new name: where it is, both are whole.
fn keep(place: &Path, compiled: &Compiled) -> std::io::Result<()> {
    let put = |bytes: &[u8], to: &Path| {
        let beside = to.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&beside, bytes)?;
        fs::rename(&beside, to)
    };
    put(compiled.log.as_bytes(), &place.with_extension("log"))?;
    put(&compiled.image, place)
}
