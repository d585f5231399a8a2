//! The kernels on a device. Each is loaded when it is first launched, and its file with it: where a driver compiles PTX, that
//! takes seconds for the larger files, of which a training needs a few.
//!
//! Loading does not belong into a recording ([`Graph::record`](super::graph::Graph::record)): there, kernels that are not
//! loaded are noted, then loaded, and the recording is done again.

use super::context::driver_words;
use super::image::{self, MODULES, Module as Compiled};
use crate::error::{Error, Result};
use crate::tuning;
use cudarc::driver::sys::{self, CUfunction_attribute as FunctionAttribute, CUresult};
use cudarc::driver::{CudaContext, result};
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The environment variable that chooses the image: `best`, `built` or `committed`.
const IMAGE_VARIABLE: &str = "RECURVE_CUDA_IMAGE";
/// Bytes of a row of U of 128 units' gates, in shared memory.
pub(super) const STAGED_ROW_BYTES: u32 = 4 * 128 * 4;
/// The file that is loaded to see whether an image can be: the smallest.
const PROBE: &str = "fill";

/// Which of the compiled images to load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageChoice {
    /// Machine code for exactly this device, else the build's PTX, else the committed PTX.
    #[default]
    Best,
    /// The PTX that this build made (the committed one, where the two are the same).
    Built,
    /// The PTX that is kept with the sources.
    Committed,
}

impl ImageChoice {
    /// What `RECURVE_CUDA_IMAGE` says; `Best` if it is not set.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is none of `best`, `built` and `committed`.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(IMAGE_VARIABLE) {
            None => Ok(Self::Best),
            Some(choice) if choice == "best" => Ok(Self::Best),
            Some(choice) if choice == "built" => Ok(Self::Built),
            Some(choice) if choice == "committed" => Ok(Self::Committed),
            Some(other) => Err(Error::usage(
                IMAGE_VARIABLE,
                format!("found {other:?}, expected best, built or committed"),
            )),
        }
    }
}

/// An image that ran, or one that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadedImage {
    /// Machine code for this architecture, e.g. `sm_90a`.
    Cubin(&'static str),
    /// The build's PTX.
    BuiltPtx,
    /// The committed PTX.
    CommittedPtx,
}

impl fmt::Display for LoadedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadedImage::Cubin(architecture) => write!(f, "cubin {architecture}"),
            LoadedImage::BuiltPtx => f.write_str("built PTX"),
            LoadedImage::CommittedPtx => f.write_str("committed PTX"),
        }
    }
}

/// A kernel by name; [`Loader::function`] has what a driver launches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    /// `fill` of kernels/fill.cu.
    stem: &'static str,
    /// Its place among all.
    index: usize,
}

macro_rules! kernels {
    ($($stem:literal: $($name:ident)*;)* stored { $($of:literal $half:literal: $($typed:ident)*;)* }) => {
        /// Every kernel.
        #[derive(Debug)]
        pub(super) struct Kernels {
            $($(pub(super) $name: Kernel,)*)*
            pub(super) f32: Typed,
            pub(super) bf16: Typed,
            pub(super) f16: Typed,
        }

        /// The kernels that there are for each type that numbers are stored in.
        #[derive(Debug)]
        pub(super) struct Typed {
            $($(pub(super) $typed: Kernel,)*)*
        }

        impl Kernels {
            /// All of them, each as `kernel(stem, name)` has it.
            fn list(mut kernel: impl FnMut(&'static str, &'static str) -> Kernel) -> Self {
                Self {
                    $($($name: kernel($stem, stringify!($name)),)*)*
                    f32: Typed { $($($typed: kernel($of, stringify!($typed)),)*)* },
                    bf16: Typed { $($($typed: kernel($half, concat!(stringify!($typed), "_bf16")),)*)* },
                    f16: Typed { $($($typed: kernel($half, concat!(stringify!($typed), "_f16")),)*)* },
                }
            }
        }
    };
}

kernels! {
    "fill": fill;
    "activation": activate;
    "batch": gather_batch;
    "embedding": embedding_backward;
    "gemm": gemm_tt gemm_tt_narrow;
    "cross_entropy": cross_entropy_forward cross_entropy_backward metrics;
    "store": store_bf16 store_f16;
    "loss_scale": loss_scale all_finite;
    "tokens": sort_tokens;
    "adam": reduce_partials gradient_norm clip_scale;
    stored {
        "embedding" "embedding": embedding_forward;
        "gemm" "gemm":
            gemm_nn gemm_nt gemm_tn gemm_nn_tall gemm_nt_tall gemm_tn_tall gemm_nn_narrow gemm_nt_narrow gemm_tn_narrow
            column_sums;
        "lstm_cell" "lstm_cell": lstm_cell_forward lstm_cell_backward;
        "lstm_sequence" "lstm_sequence":
            lstm_sequence_forward_h32 lstm_sequence_forward_h64 lstm_sequence_forward_h96 lstm_sequence_forward_h128
            lstm_sequence_backward_h32_e16 lstm_sequence_backward_h32_e32
            lstm_sequence_backward_h64_e16 lstm_sequence_backward_h64_e32
            lstm_sequence_backward_h32 lstm_sequence_backward_h64 lstm_sequence_backward_h96
            lstm_sequence_backward_h128;
        "lstm_persistent" "lstm_persistent":
            lstm_persistent_forward_h128 lstm_persistent_forward_h256 lstm_persistent_forward_h512
            lstm_persistent_backward_h128 lstm_persistent_backward_h256 lstm_persistent_backward_h512;
        "dense" "dense": dense_forward dense_backward_input dense_backward_weights;
        "fused" "fused_half":
            fused_step_h32_e16 fused_step_h32_e32 fused_step_h32_e64 fused_step_h64_e16 fused_step_h64_e32
            fused_forward_h32_e16 fused_forward_h32_e32 fused_forward_h32_e64 fused_forward_h64_e16
            fused_forward_h64_e32;
        "fused_steps" "fused_steps_half":
            fused_steps_h32_e16 fused_steps_h32_e32 fused_steps_h32_e64 fused_steps_h64_e16 fused_steps_h64_e32;
        "adam" "adam": adam adam_step;
    }
}

impl Kernel {
    /// Whether launches give its blocks dynamic shared memory, beyond what every GPU allows without being asked.
    fn has_dynamic_memory(&self) -> bool {
        self.stem.starts_with("fused")
            || self.name.starts_with("lstm_sequence") && self.name.contains("_h128")
    }
}

/// Rows of U, of the [`SEQUENCE_STREAMED`](tuning::SEQUENCE_STREAMED) that the kernels for 128 units do not keep in
/// registers, for which a block has shared memory: `opt_in` bytes at most, less the `used` ones of the kernel itself. A
/// multiple of 8, the rows that the kernels take together.
pub fn staged_rows(opt_in: u32, used: u32) -> u32 {
    (opt_in.saturating_sub(used) / STAGED_ROW_BYTES / 8 * 8).min(tuning::SEQUENCE_STREAMED)
}

/// A kernel that is loaded.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) handle: sys::CUfunction,
    /// Bytes of each parameter, as its PTX declares them.
    pub(super) parameters: Vec<u8>,
    /// Bytes of shared memory that it declares.
    pub(super) shared_bytes: u32,
}

/// A loaded module; unloaded with its last owner.
#[derive(Debug)]
struct Module {
    handle: sys::CUmodule,
    cuda: Arc<CudaContext>,
}

impl Drop for Module {
    fn drop(&mut self) {
        self.cuda.record_err(self.cuda.bind_to_thread());
        // SAFETY: the handle came from `load_module` and is unloaded here alone; its functions are owned next to it.
        self.cuda.record_err(unsafe { result::module::unload(self.handle) });
    }
}

/// The kernels of one image on one device, as far as they have been needed.
#[derive(Debug)]
pub(super) struct Loader {
    pub(super) image: LoadedImage,
    /// What was tried before [`Self::image`], and why it would not load.
    pub(super) refused: Vec<String>,
    /// By [`Kernel::index`]. Their handles are of [`State::modules`], which stay until all of this goes.
    functions: Box<[OnceLock<Function>]>,
    /// Bytes of shared memory that a block may ask for.
    opt_in: u32,
    cuda: Arc<CudaContext>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By stem.
    modules: BTreeMap<&'static str, Module>,
    /// In a recording: what it lacked.
    lacking: Option<Vec<Kernel>>,
}

impl Loader {
    /// The first image that loads on this device, of those that `choice` allows, in order of preference. The error lists
    /// them all with what was wrong.
    pub(super) fn open(
        cuda: &Arc<CudaContext>,
        choice: ImageChoice,
        capability: (i32, i32),
        opt_in: u32,
    ) -> Result<(Kernels, Self), String> {
        let best = choice == ImageChoice::Best;
        let mut candidates = Vec::new();
        if best {
            let cubins = MODULES.first().map_or(&[][..], |module| module.cubins);
            let fitting = cubins.iter().filter(|cubin| architecture(cubin.arch) == Some(capability));
            candidates.extend(fitting.map(|cubin| LoadedImage::Cubin(cubin.arch)));
        }
        // Where this build's PTX has the committed one's bytes, it is called the committed one.
        let built = MODULES.iter().any(|module| module.built_ptx.is_some());
        if choice != ImageChoice::Committed && built {
            candidates.push(LoadedImage::BuiltPtx);
        }
        if best || choice == ImageChoice::Committed || !built {
            candidates.push(LoadedImage::CommittedPtx);
        }
        let mut refused = Vec::new();
        for image in candidates {
            match load_module(cuda, &image, PROBE) {
                Ok(module) => {
                    let mut count = 0;
                    let kernels = Kernels::list(|stem, name| {
                        count += 1;
                        Kernel { stem, name, index: count - 1 }
                    });
                    let functions = (0..count).map(|_| OnceLock::new()).collect();
                    let state = State { modules: BTreeMap::from([(PROBE, module)]), lacking: None };
                    let (cuda, state) = (cuda.clone(), Mutex::new(state));
                    return Ok((kernels, Self { image, refused, functions, opt_in, cuda, state }));
                }
                Err(why) => refused.push(format!("{image}: {why}")),
            }
        }
        Err(refused.join("; "))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is whole after any panic: each change is one insertion.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel, loaded now if it has not been; None where a recording lacks it.
    pub(super) fn function(&self, kernel: &Kernel) -> Result<Option<&Function>, String> {
        let place =
            self.functions.get(kernel.index).ok_or_else(|| format!("{} is not listed", kernel.name))?;
        if let Some(function) = place.get() {
            return Ok(Some(function));
        }
        let mut state = self.state();
        if let Some(lacking) = &mut state.lacking {
            lacking.push(*kernel);
            return Ok(None);
        }
        let stem = kernel.stem;
        let handle = match state.modules.get(stem) {
            Some(module) => module.handle,
            None => {
                let module = load_module(&self.cuda, &self.image, stem)?;
                state.modules.entry(stem).or_insert(module).handle
            }
        };
        let function = self.look_up(handle, kernel)?;
        Ok(Some(place.get_or_init(|| function)))
    }

    fn look_up(&self, module: sys::CUmodule, kernel: &Kernel) -> Result<Function, String> {
        let Kernel { name, stem, .. } = *kernel;
        let fail = |error| format!("{name} of {stem}: {}", driver_words(error));
        let parameters = compiled(stem)?.parameters(name);
        let parameters = parameters.ok_or_else(|| format!("the PTX of {stem} does not declare {name}"))?;
        let c_name = CString::new(name).map_err(|_| format!("{name} holds a zero byte"))?;
        self.cuda.bind_to_thread().map_err(fail)?;
        // SAFETY: the module is loaded, and outlives the function: both belong to this loader.
        let handle = unsafe { result::module::get_function(module, c_name) }.map_err(fail)?;
        let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to a module that is loaded.
        let shared_bytes =
            unsafe { result::function::get_function_attribute(handle, attribute) }.map_err(fail)?;
        let shared_bytes = u32::try_from(shared_bytes).unwrap_or(0);
        if kernel.has_dynamic_memory() {
            let rest = self.opt_in.saturating_sub(shared_bytes);
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(rest).unwrap_or(i32::MAX);
            // SAFETY: as above.
            unsafe { result::function::set_function_attribute(handle, attribute, bytes) }.map_err(fail)?;
        }
        Ok(Function { handle, parameters, shared_bytes })
    }

    /// Rows of U that the kernel, one for 128 units, has shared memory for; 0 where a recording lacks it.
    pub(super) fn staged_rows(&self, kernel: &Kernel) -> Result<u32, String> {
        let function = self.function(kernel)?;
        Ok(function.map_or(0, |function| staged_rows(self.opt_in, function.shared_bytes)))
    }

    /// From here on kernels that are not loaded are noted, and nothing is loaded.
    pub(super) fn begin_recording(&self) {
        self.state().lacking = Some(Vec::new());
    }

    /// The kernels that were noted since [`Self::begin_recording`].
    pub(super) fn end_recording(&self) -> Vec<Kernel> {
        self.state().lacking.take().unwrap_or_default()
    }

    /// The kernel files that have been loaded so far, in alphabetical order.
    pub(super) fn loaded(&self) -> Vec<&'static str> {
        self.state().modules.keys().copied().collect()
    }
}

/// The compiled kernel file.
fn compiled(stem: &str) -> Result<&'static Compiled, String> {
    image::module(stem).ok_or_else(|| format!("this build holds no {stem}"))
}

/// `sm_90a` as a compute capability.
fn architecture(name: &str) -> Option<(i32, i32)> {
    let digits = name.strip_prefix("sm_")?.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let number: i32 = digits.parse().ok()?;
    Some((number / 10, number % 10))
}

/// Loads this image of a kernel file.
fn load_module(cuda: &Arc<CudaContext>, which: &LoadedImage, stem: &str) -> Result<Module, String> {
    let compiled = compiled(stem)?;
    let bytes = match which {
        LoadedImage::Cubin(arch) => {
            let cubin = compiled.cubins.iter().find(|cubin| cubin.arch == *arch);
            cubin.map(|cubin| cubin.bytes.to_vec())
        }
        LoadedImage::BuiltPtx => compiled.built_ptx.or(compiled.committed_ptx).map(terminated),
        LoadedImage::CommittedPtx => compiled.committed_ptx.map(terminated),
    };
    let image = bytes.ok_or_else(|| format!("{stem} is not among what this build holds of it"))?;
    cuda.bind_to_thread().map_err(driver_words)?;
    // SAFETY: the image is whole, a cubin knows its own length and PTX ends with a zero; the driver copies it.
    match unsafe { result::module::load_data(image.as_ptr().cast()) } {
        Ok(handle) => Ok(Module { handle, cuda: cuda.clone() }),
        Err(error) => {
            let words = driver_words(error);
            Err(match compiler_log(&image) {
                Some(log) => format!("{stem}: {words}: {log}"),
                None => format!("{stem}: {words}"),
            })
        }
    }
}

/// PTX reaches the driver as a string that ends with a zero.
fn terminated(ptx: &'static str) -> Vec<u8> {
    let mut bytes = ptx.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// What the driver's compiler had to say about an image that it refused.
fn compiler_log(image: &[u8]) -> Option<String> {
    // SAFETY: `devices` has found the library.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbol is only looked up through this type.
    unsafe { library.get::<unsafe extern "C" fn()>(b"cuModuleLoadDataEx") }.ok()?;
    let mut log = vec![0u8; 4096];
    let mut options =
        [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The size is passed by value in the place of a pointer.
    let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), log.len() as *mut c_void];
    let mut module = std::ptr::null_mut();
    // SAFETY: two options with two values; the log has the length that is given with it, and lives through the call.
    let code = unsafe {
        sys::cuModuleLoadDataEx(
            &raw mut module,
            image.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if code == CUresult::CUDA_SUCCESS {
        // SAFETY: just loaded, and nothing else knows of it.
        let _ = unsafe { result::module::unload(module) };
        return None;
    }
    let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.to_string())
}

/// File and name of every kernel.
#[cfg(test)]
pub(super) fn listed() -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    Kernels::list(|stem, name| {
        all.push((stem, name));
        Kernel { stem, name, index: all.len() - 1 }
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_is_a_compute_capability() {
        assert_eq!(architecture("sm_90a"), Some((9, 0)));
        assert_eq!(architecture("sm_75"), Some((7, 5)));
        assert_eq!(architecture("sm_120"), Some((12, 0)));
        assert_eq!(architecture("compute_75"), None);
        assert_eq!(architecture("sm_"), None);
    }
}
