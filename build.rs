//! Turns kernels/*.cu into what the binary embeds, and writes `kernels.rs` for `src/backend/cuda/image.rs`.
//!
//! With NVRTC (see [`nvrtc::find`]): every file becomes PTX for its baseline and a cubin for each architecture in
//! [`SHIPPED`]; cubins give the table of registers and spills, those for [`TABLE`] where PTX is renewed. The committed PTX
//! is embedded beside the built one if it belongs to these sources.
//! Without: the committed PTX alone, if it belongs to these sources. Never a stub, never a stale kernel.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `NVRTC_PATH` | the NVRTC library or its folder; nothing else is tried |
//! | `CUDA_PATH`, `CUDA_HOME`, `VIRTUAL_ENV`, `CONDA_PREFIX` | looked into |
//! | `RECURVE_NVRTC=off` | do not look for NVRTC |
//! | `RECURVE_PTX_OUT` | a folder to write what belongs into kernels/ptx to; `scripts/ptx` sets it |
//! | `RECURVE_KERNEL_CACHE` | a folder that keeps what NVRTC makes of each file, for other builds as well as this one's; else `OUT_DIR` does |

#[path = "build/apart.rs"]
mod apart;
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[path = "src/tuning.rs"]
#[allow(dead_code)]
mod tuning;

use apart::Apart;
use nvrtc::{Compiled, Nvrtc, Target};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The NVRTC that makes the committed PTX (`scripts/nvrtc` fetches it): its PTX ISA 8.1 is accepted by every driver
/// from CUDA 12.1 on.
const PINNED: &str = "12.1.105";
/// PTX is made for this architecture, unless a file has a line `// baseline: compute_NN`.
const BASELINE: u32 = 75;
/// Architectures whose machine code is embedded.
const SHIPPED: &[&str] = &["90a"];
/// Architectures in the table of resources.
const TABLE: &[&str] = &["75", "80", "86", "89", "90a"];
/// Options beside the architecture and the launch constants. Multiply and add stay two roundings, unless a kernel
/// writes fmaf: results are defined bit for bit.
const OPTIONS: &[&str] = &["--std=c++17", "--fmad=false"];

type Result<T> = std::result::Result<T, String>;

fn main() {
    if let Err(message) = run() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src/tuning.rs");
    println!("cargo::rerun-if-changed=kernels");
    let folder =
        |name| env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo has not set {name}"));
    let (root, out) = (folder("CARGO_MANIFEST_DIR")?, folder("OUT_DIR")?);
    let ptx_out = nvrtc::variable("RECURVE_PTX_OUT").map(PathBuf::from);

    let tree = Tree::read(&root.join("kernels"))?;
    let committed = Committed::read(&root.join("kernels").join("ptx"), &tree);
    let mut needed = vec!["75"];
    needed.extend(SHIPPED);
    match nvrtc::find(&root, &needed)? {
        Ok(nvrtc) if apart::is_asked() => apart::answer(&nvrtc, &tree),
        Ok(nvrtc) => {
            // No reason to build anew if the variable changes: what is built is the same.
            let kept = env::var_os("RECURVE_KERNEL_CACHE").filter(|folder| !folder.is_empty());
            let kept = kept.map_or_else(|| out.join("kernels"), PathBuf::from);
            let built = Built::compile(&nvrtc, &tree, kept, committed.as_ref().ok(), ptx_out.is_some())?;
            if let Some(folder) = ptx_out {
                built.export(&folder, &tree)?;
            }
            let committed = match committed {
                Ok(committed) => Some(committed),
                Err(reasons) => {
                    warning(&format!(
                        "the committed PTX does not belong to these sources ({}): only what NVRTC {} has just built \
                         is embedded; renew it with scripts/ptx",
                        reasons.join("; "),
                        built.version
                    ));
                    None
                }
            };
            embed(&out, &tree, committed.as_ref(), Some(&built))
        }
        Err(why) => {
            if ptx_out.is_some() {
                return Err(format!("RECURVE_PTX_OUT asks for freshly compiled kernels, but {why}."));
            }
            match committed {
                Ok(committed) => {
                    warning(&format!(
                        "{why}: embedding the committed PTX of kernels/ptx, made by NVRTC {}",
                        committed.version
                    ));
                    embed(&out, &tree, Some(&committed), None)
                }
                Err(reasons) => Err(format!(
                    "The CUDA kernels cannot be built: {why}, and the committed PTX in kernels/ptx does not belong to \
                     these sources:\n  {}\n\
                     On Linux x86-64 run scripts/nvrtc (it fetches NVRTC {PINNED}, 24 MB, no driver or GPU needed) \
                     and build again without\nRECURVE_NVRTC; scripts/ptx then renews the committed PTX. Or install \
                     CUDA 12.1 or later and set CUDA_PATH or NVRTC_PATH.\nIf the kernels were not edited, restore \
                     kernels/ and src/tuning.rs: bytes count, line ends too.",
                    reasons.join("\n  ")
                )),
            }
        }
    }
}

fn warning(text: &str) {
    println!("cargo::warning={text}");
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// One .cu file.
struct Unit {
    /// `fill` of kernels/fill.cu.
    stem: String,
    text: String,
    /// 75: its PTX is for compute_75.
    baseline: u32,
}

impl Unit {
    fn file(&self) -> String {
        format!("{}.cu", self.stem)
    }

    /// Does this file compile for `arch`?
    fn fits(&self, arch: &str) -> bool {
        arch.trim_end_matches('a').parse().is_ok_and(|number: u32| number >= self.baseline)
    }
}

/// What the kernels are made of: everything that decides the PTX's bytes, except the compiler.
struct Tree {
    units: Vec<Unit>,
    /// Name and text of each .cuh.
    headers: Vec<(String, String)>,
    options: Vec<String>,
}

impl Tree {
    fn read(folder: &Path) -> Result<Self> {
        let entries = fs::read_dir(folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let (mut units, mut headers) = (Vec::new(), Vec::new());
        for path in paths {
            let (Some(stem), Some(extension)) = (
                path.file_stem().and_then(|s| s.to_str()).map(str::to_string),
                path.extension().and_then(|s| s.to_str()),
            ) else {
                continue;
            };
            if !matches!(extension, "cu" | "cuh") {
                continue;
            }
            let text =
                String::from_utf8(read(&path)?).map_err(|_| format!("{} is not UTF-8", path.display()))?;
            if extension == "cuh" {
                headers.push((format!("{stem}.cuh"), text));
                continue;
            }
            let baseline = match text.lines().find_map(|line| line.strip_prefix("// baseline: compute_")) {
                Some(number) => number
                    .trim()
                    .parse()
                    .map_err(|_| format!("{}: unreadable baseline line", path.display()))?,
                None => BASELINE,
            };
            units.push(Unit { stem, text, baseline });
        }
        if units.is_empty() {
            return Err(format!("{} holds no .cu file", folder.display()));
        }
        let defines = tuning::DEFINES.iter().map(|(name, value)| format!("-D{name}={value}"));
        let options = OPTIONS.iter().map(|option| option.to_string()).chain(defines).collect();
        Ok(Self { units, headers, options })
    }

    /// The headers that a text includes, and those that these include; NVRTC is given no others.
    fn included(&self, text: &str) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        let mut texts = vec![text];
        while let Some(text) = texts.pop() {
            let names = text.lines().filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
            for header in names.filter_map(|name| self.headers.iter().find(|(header, _)| header == name)) {
                if !found.contains(header) {
                    found.push(header.clone());
                    texts.push(&header.1);
                }
            }
        }
        found.sort();
        found
    }

    /// The manifest's part about the sources, for PTX made by NVRTC `version`.
    fn manifest(&self, version: &str) -> Value {
        let mut sources = BTreeMap::new();
        for unit in &self.units {
            sources.insert(unit.file(), sha256(unit.text.as_bytes()));
        }
        for (name, text) in &self.headers {
            sources.insert(name.clone(), sha256(text.as_bytes()));
        }
        let defines: BTreeMap<_, _> = tuning::DEFINES.iter().copied().collect();
        let mut manifest = json!({
            "baseline": format!("compute_{BASELINE}"),
            "options": OPTIONS,
            "defines": defines,
            "sources": sources,
        });
        manifest["key"] = sha256(manifest.to_string().as_bytes()).into();
        manifest["nvrtc"] = version.into();
        manifest
    }

    /// One hash of all that decides what the kernels do: sources, headers, options and constants.
    fn key(&self) -> String {
        self.manifest("")["key"].as_str().unwrap_or_default().to_string()
    }
}

/// What one kernel needs of a multiprocessor: ptxas' figures.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    stem: String,
    kernel: String,
    arch: String,
    /// Registers a thread, static shared bytes a block, stack bytes, bytes of spill stores and of spill loads.
    figures: [u64; 5],
}

const FIGURES: [&str; 5] =
    ["registers", "shared_bytes", "stack_bytes", "spill_store_bytes", "spill_load_bytes"];

impl Row {
    fn to_json(&self) -> Value {
        let mut row = json!({ "stem": self.stem, "kernel": self.kernel, "arch": self.arch });
        for (name, figure) in FIGURES.iter().zip(self.figures) {
            row[*name] = figure.into();
        }
        row
    }

    fn from_json(row: &Value) -> Option<Self> {
        let text = |name: &str| row[name].as_str().map(str::to_string);
        let mut figures = [0; 5];
        for (name, figure) in FIGURES.iter().zip(&mut figures) {
            *figure = row[*name].as_u64()?;
        }
        Some(Self { stem: text("stem")?, kernel: text("kernel")?, arch: text("arch")?, figures })
    }

    /// Reads the log that `--ptxas-options=-v` leaves.
    fn parse(stem: &str, arch: &str, log: &str) -> Vec<Self> {
        let before = |line: &str, what: &str| -> Option<u64> {
            let words = &line[..line.find(what)?];
            words.trim_end().rsplit([' ', ',']).next()?.parse().ok()
        };
        let mut rows: Vec<Row> = Vec::new();
        // The properties of device functions that were not inlined follow their kernel's.
        let mut of_kernel = false;
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let kernel = rest.split('\'').next().unwrap_or_default().to_string();
                rows.push(Row { stem: stem.into(), kernel, arch: arch.into(), figures: [0; 5] });
                continue;
            }
            let Some(row) = rows.last_mut() else { continue };
            if let Some((_, name)) = line.split_once("Function properties for ") {
                of_kernel = name.trim() == row.kernel;
            } else if let Some(stack) = before(line, "bytes stack frame") {
                if of_kernel {
                    row.figures[2] = stack;
                }
                row.figures[3] += before(line, "bytes spill stores").unwrap_or(0);
                row.figures[4] += before(line, "bytes spill loads").unwrap_or(0);
            } else if let Some(registers) = before(line, "registers").filter(|_| line.contains(": Used ")) {
                row.figures[0] = registers;
                row.figures[1] = before(line, "bytes smem").unwrap_or(0);
            }
        }
        rows
    }
}

/// The PTX of kernels/ptx, proved to belong to the sources.
struct Committed {
    version: String,
    /// By stem.
    ptx: BTreeMap<String, String>,
    rows: Vec<Row>,
}

impl Committed {
    /// The error lists everything that does not fit.
    fn read(folder: &Path, tree: &Tree) -> std::result::Result<Self, Vec<String>> {
        let one = |reason: String| vec![reason];
        let manifest = read(&folder.join("manifest.json")).map_err(one)?;
        let manifest: Value =
            serde_json::from_slice(&manifest).map_err(|e| one(format!("kernels/ptx/manifest.json: {e}")))?;
        let version = manifest["nvrtc"]
            .as_str()
            .ok_or_else(|| one("kernels/ptx/manifest.json has no nvrtc".into()))?
            .to_string();

        let mut reasons = Vec::new();
        let expected = tree.manifest(&version);
        for (key, what) in [("baseline", "the baseline"), ("options", "the compiler's options")] {
            if manifest[key] != expected[key] {
                reasons.push(format!("{what} changed to {}", expected[key]));
            }
        }
        differences(&manifest["defines"], &expected["defines"], "src/tuning.rs: ", &mut reasons);
        differences(&manifest["sources"], &expected["sources"], "kernels/", &mut reasons);

        if reasons.is_empty() && manifest["key"] != expected["key"] {
            reasons.push("kernels/ptx/manifest.json has another key".into());
        }

        // A file of kernels/ptx as text, if its hash is the manifest's.
        let mut checked = |name: &str, hash: &Value| {
            let text = read(&folder.join(name)).and_then(|bytes| {
                if *hash != sha256(&bytes) {
                    return Err(format!("kernels/ptx/{name} is not what the manifest lists"));
                }
                String::from_utf8(bytes).map_err(|_| format!("kernels/ptx/{name} is not UTF-8"))
            });
            text.map_err(|reason| reasons.push(reason)).unwrap_or_default()
        };
        let ptx = tree.units.iter().map(|unit| {
            let name = format!("{}.ptx", unit.stem);
            (unit.stem.clone(), checked(&name, &manifest["ptx"][&name]))
        });
        let ptx = ptx.collect();
        let table = checked("resources.json", &manifest["resources"]);
        let rows = serde_json::from_str(&table).ok().and_then(|table: Value| {
            table.as_array()?.iter().map(Row::from_json).collect::<Option<Vec<_>>>()
        });
        match rows {
            Some(rows) if reasons.is_empty() => Ok(Self { version, ptx, rows }),
            _ => {
                if reasons.is_empty() {
                    reasons.push("kernels/ptx/resources.json is not a table of resources".into());
                }
                Err(reasons)
            }
        }
    }
}

/// Names the entries in which two objects of the manifest differ.
fn differences(listed: &Value, found: &Value, place: &str, reasons: &mut Vec<String>) {
    let empty = serde_json::Map::new();
    let (listed, found) = (listed.as_object().unwrap_or(&empty), found.as_object().unwrap_or(&empty));
    for (name, value) in found {
        match listed.get(name) {
            None => reasons.push(format!("{place}{name} is new")),
            Some(listed) if listed != value => reasons.push(format!("{place}{name} changed")),
            Some(_) => {}
        }
    }
    for name in listed.keys().filter(|name| !found.contains_key(*name)) {
        reasons.push(format!("{place}{name} is gone"));
    }
}

/// What NVRTC has just made.
struct Built {
    /// In full (`12.1.105`), as the PTX says it.
    version: String,
    /// By stem.
    ptx: BTreeMap<String, String>,
    /// By stem: architecture and machine code.
    cubins: BTreeMap<String, Vec<(&'static str, Vec<u8>)>>,
    rows: Vec<Row>,
}

impl Built {
    /// Compiles everything that is embedded. The table has the rows of `committed` if they are from the same compiler; else
    /// those of what is embedded, as compiling for the other architectures takes minutes. With `all` it does that too.
    fn compile(
        nvrtc: &Nvrtc,
        tree: &Tree,
        folder: PathBuf,
        committed: Option<&Committed>,
        all: bool,
    ) -> Result<Self> {
        let path = &nvrtc.path;
        if path.is_absolute() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        let apart = Apart::new(folder, nvrtc)?;
        let job = |&(unit, target): &(&Unit, Target)| apart.compile(tree, unit, target);
        let (major, minor) = nvrtc.version;
        // A file that is wrong is wrong for every target: PTX first, and each log once.
        let finish = |jobs: &[(&Unit, Target)]| -> Result<Vec<Compiled>> {
            let (mut done, mut failed) = (Vec::new(), String::new());
            for ((unit, target), result) in jobs.iter().zip(parallel(jobs, job)) {
                match result {
                    Ok(compiled) => done.push(compiled),
                    Err(log) => {
                        let (file, arch, log) = (unit.file(), target.arch(), log.trim_end());
                        let _ = writeln!(
                            failed,
                            "kernels/{file} does not compile for {arch} with NVRTC {major}.{minor} ({}):\n{log}\n",
                            path.display()
                        );
                    }
                }
            }
            if failed.is_empty() { Ok(done) } else { Err(failed) }
        };

        let jobs: Vec<_> = tree.units.iter().map(|unit| (unit, Target::Ptx(unit.baseline))).collect();
        let mut ptx = BTreeMap::new();
        let mut version = format!("{major}.{minor}");
        for ((unit, _), compiled) in jobs.iter().zip(finish(&jobs)?) {
            for line in compiled.log.lines().filter(|line| !line.trim().is_empty()) {
                let place = if line.starts_with(&unit.stem) { "kernels/" } else { "" };
                warning(&format!("{place}{line}"));
            }
            let text = String::from_utf8(compiled.image).map_err(|_| "NVRTC's PTX is not UTF-8")?;
            if let Some(full) = full_version(&text) {
                version = full;
            }
            ptx.insert(unit.stem.clone(), text);
        }

        let known = committed.filter(|committed| !all && committed.version == version);
        let (wanted, unknown): (Vec<&str>, Vec<&str>) =
            TABLE.iter().filter(|arch| SHIPPED.contains(arch) || all).partition(|a| nvrtc.supports(a));
        if !unknown.is_empty() {
            let names: Vec<_> = unknown.iter().map(|arch| format!("sm_{arch}")).collect();
            warning(&format!(
                "NVRTC {version} does not compile for {}: missing from the table of resources",
                names.join(", ")
            ));
        }
        let jobs: Vec<_> = tree
            .units
            .iter()
            .flat_map(|unit| wanted.iter().map(move |arch| (unit, Target::Cubin(arch))))
            .filter(|(unit, target)| matches!(target, Target::Cubin(arch) if unit.fits(arch)))
            .collect();
        let mut cubins: BTreeMap<String, Vec<_>> = BTreeMap::new();
        let mut rows = Vec::new();
        for ((unit, target), compiled) in jobs.iter().zip(finish(&jobs)?) {
            let Target::Cubin(arch) = *target else { continue };
            let mut found = Row::parse(&unit.stem, &target.arch(), &compiled.log);
            // ptxas starts at the end; the table has the source's order.
            found.sort_by_key(|row| ptx[&unit.stem].find(&format!(".entry {}(", row.kernel)));
            rows.extend(found);
            if SHIPPED.contains(&arch) {
                cubins.entry(unit.stem.clone()).or_default().push((arch, compiled.image));
            }
        }
        if rows.is_empty() {
            warning(&format!("NVRTC {version} reports registers in a way that is not understood: no table"));
        }
        if let Some(known) = known {
            rows.clone_from(&known.rows);
        }
        Ok(Self { version, ptx, cubins, rows })
    }

    /// Writes what belongs into kernels/ptx.
    fn export(&self, folder: &Path, tree: &Tree) -> Result<()> {
        if self.version != PINNED {
            return Err(format!(
                "The committed PTX is made by NVRTC {PINNED}, this one is {}.",
                self.version
            ));
        }
        let mut hashes = BTreeMap::new();
        for (stem, text) in &self.ptx {
            let name = format!("{stem}.ptx");
            write(&folder.join(&name), text.as_bytes())?;
            hashes.insert(name, sha256(text.as_bytes()));
        }
        let rows: Vec<_> = self.rows.iter().map(|row| row.to_json().to_string()).collect();
        let table = format!("[\n{}\n]\n", rows.join(",\n"));
        write(&folder.join("resources.json"), table.as_bytes())?;
        let mut manifest = tree.manifest(&self.version);
        manifest["ptx"] = json!(hashes);
        manifest["resources"] = sha256(table.as_bytes()).into();
        let text = serde_json::to_string_pretty(&manifest).map_err(|e| e.to_string())?;
        write(&folder.join("manifest.json"), format!("{text}\n").as_bytes())
    }
}

/// `12.1.105` from the comment at the head of NVRTC's PTX.
fn full_version(ptx: &str) -> Option<String> {
    let line = ptx.lines().take(10).find(|line| line.contains("Cuda compilation tools"))?;
    Some(line.rsplit_once(", V")?.1.trim().to_string())
}

/// `f` of every job, in order, on as many threads as there are cores.
fn parallel<J: Sync, R: Send>(jobs: &[J], f: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else { return done };
            done.push((at, f(job)));
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(jobs.len());
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Writes OUT_DIR/kernels.rs and the files that it includes.
fn embed(out: &Path, tree: &Tree, committed: Option<&Committed>, built: Option<&Built>) -> Result<()> {
    let mut code = String::from("pub static MODULES: &[Module] = &[\n");
    for Unit { stem, baseline, .. } in &tree.units {
        let committed = committed.map(|committed| &committed.ptx[stem]);
        let built_ptx = built.map(|built| &built.ptx[stem]);
        let same = committed.is_some() && committed == built_ptx;
        let committed_ptx = match committed {
            Some(_) => format!(
                "Some(include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/kernels/ptx/{stem}.ptx\")))"
            ),
            None => "None".to_string(),
        };
        let built_ptx = match built_ptx {
            Some(text) if !same => {
                write(&out.join(format!("{stem}.ptx")), text.as_bytes())?;
                format!("Some(include_str!(concat!(env!(\"OUT_DIR\"), \"/{stem}.ptx\")))")
            }
            _ => "None".to_string(),
        };
        let mut cubins = String::new();
        for (arch, bytes) in built.and_then(|built| built.cubins.get(stem)).into_iter().flatten() {
            let name = format!("{stem}.sm_{arch}.cubin");
            write(&out.join(&name), bytes)?;
            let _ = write!(
                cubins,
                "Cubin {{ arch: \"sm_{arch}\", bytes: \
                 &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))).0 }}, "
            );
        }
        let _ = writeln!(
            code,
            "    Module {{ stem: {stem:?}, baseline: \"compute_{baseline}\", committed_ptx: {committed_ptx}, \
             built_ptx: {built_ptx}, built_equals_committed: {same}, cubins: &[{cubins}] }},"
        );
    }
    code.push_str("];\n");
    let origin = match (built, committed) {
        (Some(built), _) => format!("Origin::Built {{ nvrtc: {:?} }}", built.version),
        (None, Some(committed)) => format!("Origin::Committed {{ nvrtc: {:?} }}", committed.version),
        (None, None) => return Err("no kernels to embed".into()),
    };
    let _ = writeln!(code, "pub static ORIGIN: Origin = {origin};");
    let _ = writeln!(code, "pub static KEY: &str = {:?};", tree.key());
    let version = committed.map(|committed| &committed.version);
    let _ = writeln!(code, "pub static COMMITTED_BY: Option<&str> = {version:?};");
    code.push_str("pub static RESOURCES: &[KernelResources] = &[\n");
    let rows = built.map(|built| &built.rows).or(committed.map(|committed| &committed.rows));
    for row in rows.into_iter().flatten() {
        let _ = write!(
            code,
            "    KernelResources {{ stem: {:?}, kernel: {:?}, arch: {:?}",
            row.stem, row.kernel, row.arch
        );
        for (name, figure) in FIGURES.iter().zip(row.figures) {
            let _ = write!(code, ", {name}: {figure}");
        }
        code.push_str(" },\n");
    }
    code.push_str("];\n");
    write(&out.join("kernels.rs"), code.as_bytes())
}
