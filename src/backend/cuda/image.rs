//! The compiled kernels that this binary holds, and what each kernel needs of a multiprocessor.
//!
//! Filled by the build script (see build.rs): one [`Module`] for each kernels/*.cu.

use std::fmt;

/// The images of one kernels/*.cu. At least one is there; those that are all do the same.
#[derive(Debug)]
pub struct Module {
    /// `fill` of kernels/fill.cu.
    pub stem: &'static str,
    /// What the PTX is for, e.g. `compute_75`: the oldest GPUs that run it.
    pub baseline: &'static str,
    /// The PTX of kernels/ptx, made by the pinned NVRTC; absent if it does not belong to the sources of this build.
    pub committed_ptx: Option<&'static str>,
    /// The PTX that this build made; absent if there was no NVRTC, and where it has the committed one's bytes.
    pub built_ptx: Option<&'static str>,
    /// This build made PTX, and it has the committed one's bytes.
    pub built_equals_committed: bool,
    /// Machine code made by this build.
    pub cubins: &'static [Cubin],
}

/// Machine code for one architecture.
pub struct Cubin {
    /// `sm_90a`.
    pub arch: &'static str,
    /// An ELF file, aligned to 16 bytes.
    pub bytes: &'static [u8],
}

impl fmt::Debug for Cubin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cubin({}, {} bytes)", self.arch, self.bytes.len())
    }
}

/// Something a driver can load.
#[derive(Clone, Copy, Debug)]
pub enum Image {
    /// Machine code made by this build.
    Cubin(&'static Cubin),
    /// PTX made by this build, other than the committed one.
    BuiltPtx(&'static str),
    /// PTX of kernels/ptx.
    CommittedPtx(&'static str),
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Image::Cubin(cubin) => write!(f, "cubin for {}", cubin.arch),
            Image::BuiltPtx(_) => f.write_str("built PTX"),
            Image::CommittedPtx(_) => f.write_str("committed PTX"),
        }
    }
}

impl Module {
    /// What to try, in this order, on a device of compute capability `major.minor`: the cubin made for exactly it,
    /// the built PTX, the committed PTX.
    pub fn images(&self, major: u32, minor: u32) -> Vec<Image> {
        let arch = format!("sm_{major}{minor}");
        let fits = |cubin: &&Cubin| cubin.arch.trim_end_matches('a') == arch;
        self.cubins.iter().filter(fits).map(Image::Cubin).chain(self.ptx()).collect()
    }

    /// The PTX images, which differ from each other: what every test runs.
    pub fn ptx(&self) -> impl Iterator<Item = Image> {
        let built = self.built_ptx.map(Image::BuiltPtx);
        built.into_iter().chain(self.committed_ptx.map(Image::CommittedPtx))
    }

    /// Bytes of each parameter of `kernel`, as the PTX declares them; `None` if it has no such kernel.
    pub fn parameters(&self, kernel: &str) -> Option<Vec<u8>> {
        let (_, declared) =
            self.built_ptx.or(self.committed_ptx)?.split_once(&format!(".entry {kernel}("))?;
        let (list, _) = declared.split_once(')')?;
        let of = |parameter: &str| match parameter.split_whitespace().find(|word| word.ends_with(['2', '4']))
        {
            Some(".u64" | ".b64" | ".s64" | ".f64") => Some(8),
            Some(".u32" | ".b32" | ".s32" | ".f32") => Some(4),
            _ => None,
        };
        list.split(".param").skip(1).map(of).collect()
    }
}

/// Where the images come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This build compiled the kernels.
    Built {
        /// NVRTC's version, e.g. `12.1.105`.
        nvrtc: &'static str,
    },
    /// There was no NVRTC: the committed PTX only.
    Committed {
        /// The version of the NVRTC that made it.
        nvrtc: &'static str,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Built { nvrtc } => write!(f, "built by NVRTC {nvrtc}"),
            Origin::Committed { nvrtc } => write!(f, "committed PTX, made by NVRTC {nvrtc}"),
        }
    }
}

/// What one kernel needs on one architecture, by the compiler's own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KernelResources {
    /// `fill` of kernels/fill.cu.
    pub stem: &'static str,
    /// The kernel's name.
    pub kernel: &'static str,
    /// `sm_75`, …
    pub arch: &'static str,
    /// Registers a thread.
    pub registers: u32,
    /// Static shared bytes a block.
    pub shared_bytes: u32,
    /// Stack bytes a thread: arrays that are not in registers.
    pub stack_bytes: u32,
    /// Bytes stored because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes loaded back.
    pub spill_load_bytes: u32,
}

/// Every kernel on every architecture in the table, by file, then architecture.
pub fn resources() -> &'static [KernelResources] {
    RESOURCES
}

/// The NVRTC that made the committed PTX, if that is embedded.
pub fn committed_by() -> Option<&'static str> {
    COMMITTED_BY
}

/// The module of kernels/`stem`.cu.
pub fn module(stem: &str) -> Option<&'static Module> {
    MODULES.iter().find(|module| module.stem == stem)
}

/// The images and the table in words, for `recurve info`: at most 110 columns as long as names have at most 36.
pub fn describe() -> String {
    let mut lines = vec![format!("kernels           {ORIGIN}; sources {}", &KEY[..12])];
    let mut add = |name: &str, what: String| lines.push(format!("  {name:<15} {what}"));
    let distinct = |all: Vec<&'static str>| {
        let mut kept: Vec<&str> = Vec::new();
        all.into_iter().for_each(|one| {
            if !kept.contains(&one) {
                kept.push(one);
            }
        });
        kept
    };
    let baselines = distinct(MODULES.iter().map(|module| module.baseline).collect()).join(", ");
    let cubins = distinct(MODULES.iter().flat_map(|m| m.cubins).map(|cubin| cubin.arch).collect());
    if let (Origin::Built { .. }, Some(version)) = (ORIGIN, committed_by()) {
        let same = MODULES.iter().all(|module| module.built_equals_committed);
        let relation = if same { "has the same bytes" } else { "is tried after it" };
        add("PTX", format!("for {baselines} and later; the committed one, by NVRTC {version}, {relation}"));
    } else {
        add("PTX", format!("for {baselines} and later"));
    }
    add(
        "machine code",
        if cubins.is_empty() { "none".to_string() } else { format!("for {}", cubins.join(", ")) },
    );

    let archs = distinct(RESOURCES.iter().map(|row| row.arch).collect());
    if archs.is_empty() {
        add("resources", "not known: the compiler did not report them".into());
        return lines.join("\n");
    }
    add(
        "resources",
        "registers a thread / static shared bytes a block; spills: bytes on the worst of these".into(),
    );
    let columns: String = archs.iter().map(|arch| format!(" {arch:>11}")).collect();
    lines.push(format!("  {:<36}{columns}  spills", "kernel"));
    for kernel in distinct(RESOURCES.iter().map(|row| row.kernel).collect()) {
        let rows = || RESOURCES.iter().filter(|row| row.kernel == kernel);
        let cells: String = archs
            .iter()
            .map(|arch| match rows().find(|row| row.arch == *arch) {
                Some(row) => format!(" {:>11}", format!("{}/{}", row.registers, row.shared_bytes)),
                None => format!(" {:>11}", "-"),
            })
            .collect();
        let spills = rows().map(|row| row.spill_store_bytes + row.spill_load_bytes).max().unwrap_or(0);
        lines.push(format!("  {kernel:<36}{cells}  {spills:>6}"));
    }
    lines.join("\n")
}

/// Gives a cubin the alignment of an ELF file's tables. Without NVRTC there is no cubin.
#[allow(dead_code)]
#[repr(C, align(16))]
struct Aligned<T>(T);

mod generated {
    //! Written by the build script.
    #![allow(missing_docs, unused_imports)]
    use super::{Aligned, Cubin, KernelResources, Module, Origin};
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
use generated::{COMMITTED_BY, RESOURCES};
/// `MODULES`: one for each kernels/*.cu, sorted by stem. `ORIGIN`: where they come from. `KEY`: a SHA-256 of their
/// sources, headers, options and launch constants, which names them in records.
pub use generated::{KEY, MODULES, ORIGIN};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// Name and text of the files in kernels/ with this extension.
    fn sources(extension: &str) -> Vec<(String, String)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let wanted = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
        let mut found: Vec<_> = wanted
            .map(|p| (p.file_name().unwrap().to_str().unwrap().to_string(), fs::read_to_string(&p).unwrap()))
            .collect();
        found.sort();
        found
    }

    /// Source text without its comments.
    fn code(text: &str) -> String {
        let mut rest = text;
        let mut kept = String::new();
        while let Some((before, after)) = rest.split_once("/*") {
            kept += before;
            rest = after.split_once("*/").map_or("", |(_, after)| after);
        }
        kept += rest;
        kept.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
    }

    /// `text` without every `word(…)`.
    fn without(text: &str, word: &str) -> String {
        let mut kept = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(word) {
            kept += before;
            let mut depth = 0;
            let end = after.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                c == ')' && depth == 0
            });
            rest = end.map_or("", |end| &after[end + 1..]);
        }
        kept + rest
    }

    /// The kernels that a source declares `extern "C" __global__`, outside of macros.
    fn declared(text: &str) -> BTreeSet<String> {
        let code = code(text).replace("\\\n", " ");
        let lines: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        let code = without(&lines.join("\n"), "__launch_bounds__");
        let heads = code.split("extern \"C\" __global__").skip(1).map(|part| part.split('(').next().unwrap());
        heads.map(|head| head.split_whitespace().last().unwrap().to_string()).collect()
    }

    fn entries(ptx: &str) -> BTreeSet<String> {
        let names = ptx.lines().filter_map(|line| line.split_once(".entry "));
        names.map(|(_, name)| name.trim_end_matches('(').trim().to_string()).collect()
    }

    fn text(image: Image) -> &'static str {
        match image {
            Image::BuiltPtx(text) | Image::CommittedPtx(text) => text,
            Image::Cubin(_) => unreachable!("Module::ptx yields PTX"),
        }
    }

    #[test]
    fn every_source_has_its_images() {
        println!("kernels: {ORIGIN}");
        let stems: Vec<_> = sources("cu").into_iter().map(|(name, _)| name.replace(".cu", "")).collect();
        assert_eq!(stems, MODULES.iter().map(|module| module.stem).collect::<Vec<_>>());
        for module in MODULES {
            assert!(module.ptx().count() > 0, "{}: no PTX", module.stem);
            assert!(module.built_ptx.is_none() || !module.built_equals_committed, "{}", module.stem);
            for image in module.ptx() {
                let target = format!(".target {}", module.baseline.replace("compute_", "sm_"));
                assert!(
                    text(image).lines().any(|line| line == target),
                    "{}: {image} is not for {target}",
                    module.stem
                );
            }
            for cubin in module.cubins {
                assert_eq!(&cubin.bytes[..4], b"\x7fELF", "{}", module.stem);
                assert_eq!(cubin.bytes.as_ptr() as usize % 16, 0, "{}", module.stem);
            }
            let built = matches!(ORIGIN, Origin::Built { .. });
            assert_eq!(module.cubins.iter().any(|cubin| cubin.arch == "sm_90a"), built, "{}", module.stem);
            assert_eq!(super::module(module.stem).unwrap().stem, module.stem);
        }
    }

    #[test]
    fn a_device_gets_its_cubin_first_and_the_committed_ptx_last() {
        for module in MODULES {
            let hopper = module.images(9, 0);
            assert_eq!(matches!(hopper[0], Image::Cubin(_)), !module.cubins.is_empty(), "{}", module.stem);
            let last = hopper.last().unwrap();
            assert_eq!(
                matches!(last, Image::CommittedPtx(_)),
                module.committed_ptx.is_some(),
                "{}",
                module.stem
            );
            // An sm_90a cubin runs on nothing but 9.0.
            assert!(
                !module.images(10, 0).iter().any(|image| matches!(image, Image::Cubin(_))),
                "{}",
                module.stem
            );
        }
    }

    #[test]
    fn every_kernel_declared_is_an_entry_of_every_ptx() {
        for ((_, source), module) in sources("cu").iter().zip(MODULES) {
            let declared = declared(source);
            for image in module.ptx() {
                let entries = entries(text(image));
                assert!(!entries.is_empty(), "{}: {image} has no entry", module.stem);
                let missing: Vec<_> = declared.difference(&entries).collect();
                assert!(missing.is_empty(), "{}: {image} lacks {missing:?}", module.stem);
            }
        }
    }

    /// As none is loaded before it is launched, one that is not there would be found late.
    #[test]
    fn the_kernels_that_can_be_launched_are_the_entries() {
        let listed = super::super::kernels::listed();
        for module in MODULES {
            let of_module = listed.iter().filter(|(stem, _)| *stem == module.stem);
            let names: BTreeSet<_> = of_module.map(|(_, name)| name.to_string()).collect();
            for image in module.ptx() {
                assert_eq!(names, entries(text(image)), "{}: {image}", module.stem);
            }
        }
        assert!(listed.iter().all(|(stem, _)| super::module(stem).is_some()), "of a file that is not there");
    }

    #[test]
    fn every_entry_is_in_the_table_and_none_spills() {
        for row in resources() {
            assert!(row.registers > 0, "{row:?}");
            assert_eq!((row.spill_store_bytes, row.spill_load_bytes), (0, 0), "{row:?}");
        }
        let archs: BTreeSet<_> = resources().iter().map(|row| row.arch).collect();
        assert!(archs.contains("sm_90a"), "{archs:?}");
        for module in MODULES {
            let baseline: u32 = module.baseline["compute_".len()..].parse().unwrap();
            for arch in &archs {
                let of_arch = resources().iter().filter(|row| row.stem == module.stem && row.arch == *arch);
                let listed: BTreeSet<_> = of_arch.map(|row| row.kernel.to_string()).collect();
                let number: u32 = arch.trim_start_matches("sm_").trim_end_matches('a').parse().unwrap();
                let ptx = module.ptx().next().unwrap();
                let expected = if number < baseline { BTreeSet::new() } else { entries(text(ptx)) };
                assert_eq!(listed, expected, "{} on {arch}", module.stem);
            }
        }
    }

    #[test]
    fn kernels_mean_the_same_on_every_architecture() {
        for (name, text) in sources("cu").into_iter().chain(sources("cuh")) {
            assert!(!code(&text).contains("__CUDA_ARCH"), "{name} asks for the architecture");
        }
    }

    #[test]
    fn the_description_fits_a_terminal() {
        for line in describe().lines() {
            assert!(line.chars().count() <= 110, "{line}");
        }
    }

    #[test]
    fn kernels_are_found_in_their_sources() {
        let text = "// extern \"C\" __global__ void no(\n/* extern \"C\" __global__ void no( */\n\
                    extern \"C\" __global__ void plain(int n) {}\n\
                    extern \"C\" __global__ void __launch_bounds__(4 * (HP), 1)\n  bounded (int n) {}\n\
                    extern \"C\" __global__ __launch_bounds__(32) void first(float *x) {}\n\
                    #define FORWARD(HP) \\\n  extern \"C\" __global__ void forward_h##HP(float *x) {}\n";
        assert_eq!(declared(text).into_iter().collect::<Vec<_>>(), ["bounded", "first", "plain"]);
    }
}
