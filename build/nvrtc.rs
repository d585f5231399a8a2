//! NVRTC for the build script: where it is looked for, and the dozen of its functions that the build calls.
//!
//! It is opened at run time, so that a build needs no CUDA: where there is none, [`find`] says so and the committed
//! PTX is used.

use libloading::Library;
use std::env;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;

/// `nvrtcProgram`.
type Handle = *mut std::ffi::c_void;
/// `nvrtcResult`; 0 is success.
type Code = c_int;

/// The oldest NVRTC that knows sm_90a.
const OLDEST: (i32, i32) = (12, 0);

/// An opened NVRTC.
pub struct Nvrtc {
    /// The library as it was opened: a path, or a name that the system's loader knows.
    pub path: PathBuf,
    /// Major and minor version.
    pub version: (i32, i32),
    /// Architectures that it compiles for, as 75 for compute_75 and sm_75.
    pub archs: Vec<u32>,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Code,
    destroy: unsafe extern "C" fn(*mut Handle) -> Code,
    log: Read,
    ptx: Read,
    cubin: Read,
    error: unsafe extern "C" fn(Code) -> *const c_char,
}

/// A pair `nvrtcGetXSize`, `nvrtcGetX`.
#[derive(Clone, Copy)]
struct Read {
    size: unsafe extern "C" fn(Handle, *mut usize) -> Code,
    get: unsafe extern "C" fn(Handle, *mut c_char) -> Code,
}

/// What a program is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// PTX for this baseline, e.g. 75.
    Ptx(u32),
    /// Machine code for this architecture, e.g. `90a`.
    Cubin(&'static str),
}

impl Target {
    /// The value of `--gpu-architecture`.
    pub fn arch(self) -> String {
        match self {
            Target::Ptx(baseline) => format!("compute_{baseline}"),
            Target::Cubin(arch) => format!("sm_{arch}"),
        }
    }
}

/// What a compilation gave.
pub struct Compiled {
    /// PTX (without its final NUL) or a cubin.
    pub image: Vec<u8>,
    /// NVRTC's log: warnings and, for a cubin compiled with `-v`, the registers.
    pub log: String,
}

/// One function of the library.
fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: every T below is the type that nvrtc.h gives the function of that name, from 12.0 to 13.x.
    unsafe { library.get::<T>(name) }.map(|f| *f).map_err(|e| format!("has no {name} ({e})"))
}

impl Nvrtc {
    /// Opens the library `path` and asks what it can do; an error is a clause about it ("is NVRTC 11.8, …").
    fn open(path: &Path) -> Result<Self, String> {
        // NVRTC 13 opens its builtins by bare name and finds them only if they are in the process already.
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            for builtins in files(folder, |name| name.contains("nvrtc-builtins") && !name.contains(".alt")) {
                // SAFETY: NVIDIA's data library; its initialisers do nothing but register. If it cannot be opened,
                // compiling says so.
                std::mem::forget(unsafe { Library::new(builtins) });
            }
        }
        // SAFETY: a library of NVRTC's name, chosen by the user's environment or installed on the system.
        let library = unsafe { Library::new(path) }.map_err(|e| {
            // The loader's own words are in the source.
            let cause =
                std::error::Error::source(&e).map_or_else(|| e.to_string(), |cause| cause.to_string());
            format!("cannot be opened: {cause}")
        })?;
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code = symbol(&library, "nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two valid pointers, written during the call.
        if unsafe { version(&mut major, &mut minor) } != 0 {
            return Err("does not tell its version".into());
        }
        if (major, minor) < OLDEST {
            return Err(format!("is NVRTC {major}.{minor}; 12.0 or later is needed"));
        }
        let count: unsafe extern "C" fn(*mut c_int) -> Code = symbol(&library, "nvrtcGetNumSupportedArchs")?;
        let list: unsafe extern "C" fn(*mut c_int) -> Code = symbol(&library, "nvrtcGetSupportedArchs")?;
        let mut n = 0;
        // SAFETY: a valid pointer, written during the call.
        if unsafe { count(&mut n) } != 0 {
            return Err("does not tell its architectures".into());
        }
        let mut archs = vec![0; usize::try_from(n).unwrap_or(0)];
        // SAFETY: the array has the length that the library has just asked for.
        if unsafe { list(archs.as_mut_ptr()) } != 0 {
            return Err("does not tell its architectures".into());
        }
        let read = |size: &str, get: &str| -> Result<Read, String> {
            Ok(Read { size: symbol(&library, size)?, get: symbol(&library, get)? })
        };
        let nvrtc = Self {
            path: path.to_path_buf(),
            version: (major, minor),
            archs: archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect(),
            create: symbol(&library, "nvrtcCreateProgram")?,
            compile: symbol(&library, "nvrtcCompileProgram")?,
            destroy: symbol(&library, "nvrtcDestroyProgram")?,
            log: read("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?,
            ptx: read("nvrtcGetPTXSize", "nvrtcGetPTX")?,
            cubin: read("nvrtcGetCUBINSize", "nvrtcGetCUBIN")?,
            error: symbol(&library, "nvrtcGetErrorString")?,
        };
        // The functions above stay valid: the library is never closed.
        std::mem::forget(library);
        Ok(nvrtc)
    }

    /// Does it compile for this architecture, e.g. `75` or `90a`?
    pub fn supports(&self, arch: &str) -> bool {
        let number = arch.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        number.parse().is_ok_and(|number| self.archs.contains(&number))
    }

    /// Compiles one file. `headers` are pairs of the name in `#include` and the text. The error is NVRTC's log.
    pub fn compile(
        &self,
        name: &str,
        text: &str,
        headers: &[(String, String)],
        options: &[String],
        target: Target,
    ) -> Result<Compiled, String> {
        let c =
            |text: &str| CString::new(text).map_err(|_| format!("{name}: a NUL byte in the text or options"));
        let (c_name, c_text) = (c(name)?, c(text)?);
        let header_names = headers.iter().map(|(name, _)| c(name)).collect::<Result<Vec<_>, _>>()?;
        let header_texts = headers.iter().map(|(_, text)| c(text)).collect::<Result<Vec<_>, _>>()?;
        let mut all = vec![c(&format!("--gpu-architecture={}", target.arch()))?];
        if let Target::Cubin(_) = target {
            all.push(c("--ptxas-options=-v")?);
        }
        for option in options {
            all.push(c(option)?);
        }
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (header_names, header_texts, all_pointers) =
            (pointers(&header_names), pointers(&header_texts), pointers(&all));
        let length =
            |n: usize| c_int::try_from(n).map_err(|_| format!("{name}: too many headers or options"));

        let mut program: Handle = ptr::null_mut();
        // SAFETY: NUL-terminated strings and arrays of the lengths given, all alive until the end of this function.
        let code = unsafe {
            (self.create)(
                &mut program,
                c_text.as_ptr(),
                c_name.as_ptr(),
                length(headers.len())?,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        self.check(code, "nvrtcCreateProgram")?;
        // SAFETY: the program was created above; the options are as many as said.
        let code = unsafe { (self.compile)(program, length(all.len())?, all_pointers.as_ptr()) };
        let result = self.collect(program, code, target);
        // SAFETY: the program was created above and is not used after this.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    /// Reads what compiling `program`, which answered `code`, has left.
    fn collect(&self, program: Handle, code: Code, target: Target) -> Result<Compiled, String> {
        let text = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let log = text(self.read(self.log, program, "the log")?);
        if code != 0 {
            return Err(if log.trim().is_empty() { self.message(code) } else { log });
        }
        let mut image = match target {
            Target::Ptx(_) => self.read(self.ptx, program, "the PTX")?,
            Target::Cubin(_) => self.read(self.cubin, program, "the cubin")?,
        };
        if let Target::Ptx(_) = target {
            while image.last() == Some(&0) {
                image.pop();
            }
        }
        Ok(Compiled { image, log })
    }

    fn read(&self, read: Read, program: Handle, what: &str) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: a living program and a valid pointer.
        self.check(unsafe { (read.size)(program, &mut size) }, what)?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: the buffer has the size that NVRTC has just asked for.
        self.check(unsafe { (read.get)(program, bytes.as_mut_ptr().cast()) }, what)?;
        Ok(bytes)
    }

    fn check(&self, code: Code, what: &str) -> Result<(), String> {
        if code == 0 { Ok(()) } else { Err(format!("{what}: {}", self.message(code))) }
    }

    fn message(&self, code: Code) -> String {
        // SAFETY: NVRTC answers a static string for every code.
        let text = unsafe { CStr::from_ptr((self.error)(code)) };
        text.to_string_lossy().into_owned()
    }
}

/// The first usable NVRTC; where there is none, a clause that says why. `needed` are architectures it must know.
///
/// # Errors
/// `NVRTC_PATH` is set and does not lead to a usable one: the user has chosen, so nothing else is tried.
pub fn find(root: &Path, needed: &[&str]) -> Result<Result<Nvrtc, String>, String> {
    let open = |path: &Path| {
        let nvrtc = Nvrtc::open(path)?;
        match needed.iter().find(|arch| !nvrtc.supports(arch)) {
            Some(arch) => {
                let (major, minor) = nvrtc.version;
                Err(format!("is NVRTC {major}.{minor}, which does not compile for {arch}"))
            }
            None => Ok(nvrtc),
        }
    };
    if variable("RECURVE_NVRTC").is_some_and(|value| value == "off") {
        return Ok(Err("RECURVE_NVRTC=off".into()));
    }
    if let Some(chosen) = variable("NVRTC_PATH").map(PathBuf::from) {
        let candidates = if chosen.is_dir() { in_toolkit(&chosen) } else { vec![chosen.clone()] };
        let mut why = "holds no NVRTC library".to_string();
        for path in candidates {
            match open(&path) {
                Ok(nvrtc) => return Ok(Ok(nvrtc)),
                Err(e) => why = e,
            }
        }
        return Err(format!(
            "NVRTC_PATH is {}, which {why}.\nPoint it at the library or its folder, or unset it to have NVRTC looked \
             for; RECURVE_NVRTC=off takes the committed PTX.",
            chosen.display()
        ));
    }

    // What was found but cannot be used.
    let mut unusable = Vec::new();
    let mut first = |candidates: Vec<PathBuf>, note: bool| {
        candidates.into_iter().find_map(|path| match open(&path) {
            Ok(nvrtc) => Some(nvrtc),
            Err(why) if note => {
                unusable.push(format!("{} {why}", path.display()));
                None
            }
            Err(_) => None,
        })
    };
    let cuda = |name: &str| variable(name).map(|folder| in_toolkit(Path::new(&folder))).unwrap_or_default();
    let found = first(cuda("CUDA_PATH"), true)
        .or_else(|| first(cuda("CUDA_HOME"), true))
        .or_else(|| first(by_name(), false))
        .or_else(|| first(installed(), true))
        .or_else(|| first(in_toolkit(&root.join(".cache").join("nvrtc")), true))
        .or_else(|| first(in_wheels(), true));
    Ok(found.ok_or_else(|| match unusable.as_slice() {
        [] => "no NVRTC was found".to_string(),
        all => format!("no usable NVRTC was found ({})", all.join("; ")),
    }))
}

/// An environment variable that is set and not empty; cargo is told that the build depends on it.
pub fn variable(name: &str) -> Option<std::ffi::OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Files of a folder whose names satisfy `wanted`, sorted; none where there is no such folder.
fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter(|e| e.file_name().to_str().is_some_and(&wanted)).map(|e| e.path()).collect();
    found.sort();
    found
}

/// NVRTC libraries in a folder and in the places where a CUDA toolkit or a wheel has them.
fn in_toolkit(folder: &Path) -> Vec<PathBuf> {
    let places = ["", "lib64", "lib", "bin", "bin/x64", "bin/x86_64", "targets/x86_64-linux/lib"];
    let library = |name: &str| {
        let named = name.starts_with("libnvrtc.so")
            || (name.starts_with("nvrtc64_") && name.ends_with(".dll") && !name.contains("builtins"));
        named && !name.contains(".alt")
    };
    places.iter().flat_map(|place| files(&folder.join(place), library)).collect()
}

/// Names that the system's loader may know.
fn by_name() -> Vec<PathBuf> {
    let names: &[&str] = if cfg!(windows) {
        &["nvrtc64_120_0.dll", "nvrtc64_130_0.dll"]
    } else if cfg!(target_os = "linux") {
        &["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"]
    } else {
        &[]
    };
    names.iter().map(PathBuf::from).collect()
}

/// Toolkits where installers put them; `cuda`, the one the administrator chose, before `cuda-12.4` and its like.
fn installed() -> Vec<PathBuf> {
    let mut toolkits = files(Path::new("/usr/local"), |name| name.starts_with("cuda"));
    toolkits.sort_by_key(|path| (path.file_name() != Some("cuda".as_ref()), std::cmp::Reverse(path.clone())));
    toolkits.push("/opt/cuda".into());
    toolkits.iter().flat_map(|folder| in_toolkit(folder)).collect()
}

/// NVIDIA's pip wheels in the active Python environment.
fn in_wheels() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).map(PathBuf::from);
    let mut found = Vec::new();
    for environment in environments {
        let mut sites = vec![environment.join("Lib/site-packages")];
        for python in files(&environment.join("lib"), |name| name.starts_with("python3")) {
            sites.push(python.join("site-packages"));
        }
        for site in sites {
            found.extend(in_toolkit(&site.join("nvidia/cuda_nvrtc")));
            found.extend(in_toolkit(&site.join("nvidia/cu13")));
        }
    }
    found
}
