//! The driver, a device, and the kernels loaded on it.
//!
//! Nothing here is reached when there is no driver: the library that speaks for it is looked for first, and each of its
//! functions that this crate calls, because calling one that is not there would be a panic.

use super::buffer::Staging;
use super::fused;
use super::fused_steps;
use super::image::{self, MODULES, Module as Compiled};
use super::lstm_sequence;
use crate::error::{Error, Result};
use crate::tuning;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUfunction_attribute as FunctionAttribute, CUresult,
};
use cudarc::driver::{CudaContext, CudaStream};
use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::sync::{Arc, Mutex};

/// The oldest compute capability that the kernels are compiled for.
const MIN_CAPABILITY: (i32, i32) = (7, 5);
/// The driver's CUDA version that reads the kernels' PTX (ISA 8.1).
const MIN_DRIVER: i32 = 12_010;
/// The environment variable that chooses the image: `best`, `built` or `committed`.
const IMAGE_VARIABLE: &str = "RECURVE_CUDA_IMAGE";
/// Bytes of a row of U of 128 units' gates, in shared memory.
pub(super) const STAGED_ROW_BYTES: u32 = 4 * 128 * 4;

/// Every function of the driver that is called here or by cudarc on our behalf.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemGetInfo_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuLaunchCooperativeKernel",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuStreamDestroy_v2",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuEventDestroy_v2",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
];

/// Why no CUDA device can be used at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The driver's library is not installed: the usual case on a machine without an NVIDIA GPU.
    Driver,
    /// There is a driver, but it cannot be used, or it has no device; a sentence.
    Unusable(String),
}

impl Missing {
    /// As the error about `device`.
    pub fn into_error(self, device: impl Into<String>) -> Error {
        let message = match self {
            Missing::Driver => "no NVIDIA driver was found (its library, libcuda.so.1 or nvcuda.dll, is not \
                                installed); install the driver, or use --device cpu"
                .to_string(),
            Missing::Unusable(why) => why,
        };
        Error::device(device, message)
    }
}

/// Starts the driver and counts its devices.
pub fn devices() -> Result<u32, Missing> {
    // SAFETY: opening the driver's library runs its initialisers, which is what every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Missing::Driver);
    }
    // SAFETY: as above; the library is there, so this does not panic.
    let library = unsafe { sys::culib() };
    for symbol in SYMBOLS {
        // SAFETY: the symbol is only looked up, never called through this type.
        if unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err() {
            return Err(Missing::Unusable(format!(
                "the installed driver has no {symbol}: it is older than CUDA {}; update it, or use --device cpu",
                version_name(MIN_DRIVER)
            )));
        }
    }
    let unusable = |error: DriverError| {
        Missing::Unusable(match error.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => {
                "there is an NVIDIA driver, but it sees no GPU (CUDA_ERROR_NO_DEVICE; is CUDA_VISIBLE_DEVICES \
                 set?); use --device cpu"
                    .to_string()
            }
            _ => format!(
                "the NVIDIA driver does not start: {}; a reboot often cures a driver that was updated while \
                 in use; or use --device cpu",
                driver_words(error)
            ),
        })
    };
    result::init().map_err(unusable)?;
    let count = result::device::get_count().map_err(unusable)?;
    match u32::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(unusable(DriverError(CUresult::CUDA_ERROR_NO_DEVICE))),
    }
}

/// The driver's own name and words for an error.
pub(super) fn driver_words(error: DriverError) -> String {
    let text = |words: Result<&CStr, DriverError>| words.ok().map(|w| w.to_string_lossy().into_owned());
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(words)) => format!("{name} ({words})"),
        (Some(name), None) => name,
        _ => format!("error {}", error.0 as u32),
    }
}

/// `12040` as people write it, `12.4`.
fn version_name(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

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

/// A kernel: a function of a loaded module.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) name: &'static str,
    /// Bytes of each parameter, as its PTX declares them.
    pub(super) parameters: Vec<u8>,
}

macro_rules! kernels {
    ($($stem:literal: $($name:ident)*;)* stored { $($of:literal $half:literal: $($typed:ident)*;)* }) => {
        /// Every kernel, looked up once.
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

        /// The kernel files, each once or more.
        const STEMS: &[&str] = &[$($stem,)* $($of, $half),*];

        impl Kernels {
            /// Looks up every kernel through `find(stem, name)`.
            fn load(mut find: impl FnMut(&'static str, &'static str) -> Result<Kernel, String>) -> Result<Self, String> {
                Ok(Self {
                    $($($name: find($stem, stringify!($name))?,)*)*
                    f32: Typed { $($($typed: find($of, stringify!($typed))?,)*)* },
                    bf16: Typed { $($($typed: find($half, concat!(stringify!($typed), "_bf16"))?,)*)* },
                    f16: Typed { $($($typed: find($half, concat!(stringify!($typed), "_f16"))?,)*)* },
                })
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

impl Kernels {
    /// Those of each type.
    fn typed(&self) -> [&Typed; 3] {
        [&self.f32, &self.bf16, &self.f16]
    }
}

/// Rows of U, of the [`SEQUENCE_STREAMED`](tuning::SEQUENCE_STREAMED) that the kernels for 128 units do not keep in
/// registers, for which a block has shared memory: `opt_in` bytes at most, less the `used` ones of the kernel itself. A
/// multiple of 4, the rows that the kernels take together.
pub fn staged_rows(opt_in: u32, used: u32) -> u32 {
    (opt_in.saturating_sub(used) / STAGED_ROW_BYTES / 4 * 4).min(tuning::SEQUENCE_STREAMED)
}

/// A device with the kernels on it, and one stream on which everything happens in order.
pub(super) struct Context {
    /// As the user names it: `cuda:0`.
    pub(super) label: String,
    pub(super) name: String,
    pub(super) capability: (i32, i32),
    pub(super) memory: usize,
    driver: i32,
    pub(super) image: LoadedImage,
    /// What was tried before [`Self::image`], and why it would not load.
    pub(super) refused: Vec<String>,
    pub(super) kernels: Kernels,
    /// Keep the kernels' code loaded.
    _modules: Vec<Module>,
    /// Rows of U in shared memory, for the sequence kernels of 128 units.
    pub(super) staged_rows: u32,
    /// Bytes of shared memory that a block of the fused kernels can have.
    pub(super) fused_bytes: usize,
    pub(super) multiprocessors: u32,
    /// Whether blocks can be launched together, to wait for each other.
    pub(super) cooperative: bool,
    pub(super) staging: Mutex<Option<Staging>>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) cuda: Arc<CudaContext>,
}

// SAFETY: the only fields that are not Send and Sync by themselves are handles of modules and functions. These are
// names that the driver gave out for the whole process; it takes them from any thread to which the context is bound,
// which every use does first.
unsafe impl Send for Context {}
// SAFETY: as for Send; nothing behind the handles is changed after loading.
unsafe impl Sync for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("label", &self.label)
            .field("name", &self.name)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// Opens device `ordinal` and loads the kernels.
    pub(super) fn open(ordinal: u32, choice: ImageChoice) -> Result<Self> {
        let label = format!("cuda:{ordinal}");
        let count = devices().map_err(|missing| missing.into_error(&label))?;
        if ordinal >= count {
            return Err(Error::device(
                label,
                format!(
                    "there is no such device; the driver sees {count}, cuda:0 to cuda:{}. See recurve info",
                    count - 1
                ),
            ));
        }
        let fail = |doing: &str, error: DriverError| {
            Error::device(&label, format!("cannot {doing}: {}; {}", driver_words(error), advice(error)))
        };
        let mut driver = 0;
        // SAFETY: the driver writes one int through the pointer, which is valid for the call.
        unsafe { sys::cuDriverGetVersion(&raw mut driver).result() }
            .map_err(|e| fail("ask for the driver's version", e))?;
        let cuda = CudaContext::new(ordinal as usize).map_err(|e| fail("open the device", e))?;
        // SAFETY: everything of this context happens on the one stream made below, in order; buffers of another
        // stream are refused when they are handed to a kernel (`View::home`).
        unsafe { cuda.disable_event_tracking() };
        let stream = cuda.new_stream().map_err(|e| fail("make a stream", e))?;
        let name = cuda.name().map_err(|e| fail("ask for the device's name", e))?;
        let capability = cuda.compute_capability().map_err(|e| fail("ask for the compute capability", e))?;
        let memory = cuda.total_mem().map_err(|e| fail("ask for the device's memory", e))?;
        let opt_in = cuda
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(|e| fail("ask for the shared memory of a block", e))?;
        let multiprocessors = cuda
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(|e| fail("ask for the number of multiprocessors", e))?;
        let cooperative = cuda
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)
            .map_err(|e| fail("ask for cooperative launches", e))?;
        if capability < MIN_CAPABILITY {
            return Err(Error::device(
                label,
                format!(
                    "{name} has compute capability {}.{}; the kernels need {}.{} (Turing, 2018) or newer; \
                     use --device cpu",
                    capability.0, capability.1, MIN_CAPABILITY.0, MIN_CAPABILITY.1
                ),
            ));
        }
        let (image, refused, modules, kernels) =
            load(&cuda, choice, capability).map_err(|why| unloadable(&label, &name, driver, &why))?;

        let sequences: Vec<_> = kernels.typed().into_iter().flat_map(lstm_sequence::staging).collect();
        let mut staged = tuning::SEQUENCE_STREAMED;
        for kernel in &sequences {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a module that is loaded.
            let used = unsafe { result::function::get_function_attribute(kernel.function, attribute) }
                .map_err(|e| fail("ask for a kernel's shared memory", e))?;
            let bytes = |n: i32| u32::try_from(n).unwrap_or(0);
            staged = staged.min(staged_rows(bytes(opt_in), bytes(used)));
        }
        // The fused kernels declare no shared memory of their own.
        let fused = |k| fused::all(k).into_iter().chain(fused_steps::all(k));
        let fused = kernels.typed().into_iter().flat_map(fused).map(|kernel| (kernel, opt_in));
        let bytes = i32::try_from(staged * STAGED_ROW_BYTES).unwrap_or(i32::MAX);
        for (kernel, bytes) in sequences.iter().map(|&kernel| (kernel, bytes)).chain(fused) {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to a module that is loaded.
            unsafe { result::function::set_function_attribute(kernel.function, attribute, bytes) }
                .map_err(|e| fail("give a kernel its shared memory", e))?;
        }
        Ok(Self {
            label,
            name,
            capability,
            memory,
            driver,
            image,
            refused,
            kernels,
            _modules: modules,
            staged_rows: staged,
            fused_bytes: usize::try_from(opt_in).unwrap_or(0),
            multiprocessors: u32::try_from(multiprocessors).unwrap_or(1),
            cooperative: cooperative != 0,
            staging: Mutex::new(None),
            stream,
            cuda,
        })
    }

    /// The CUDA version of the driver, as `12.4`.
    pub(super) fn driver_version(&self) -> String {
        version_name(self.driver)
    }

    /// What tells this context's buffers from another's.
    pub(super) fn home(&self) -> usize {
        Arc::as_ptr(&self.stream) as usize
    }

    /// The device's compute capability, driver and image in words.
    pub(super) fn executed(&self) -> String {
        format!(
            "compute capability {}.{}, {}, driver for CUDA {}",
            self.capability.0,
            self.capability.1,
            self.image,
            self.driver_version()
        )
    }

    /// A failed call of the driver, in words: what was being done, what the driver said, what to do.
    pub(super) fn error(&self, doing: &str, error: DriverError) -> Error {
        Error::device(&self.label, format!("{doing}: {}; {}", driver_words(error), advice(error)))
    }

    /// Waits until everything asked for has been done. `doing` names what was asked for.
    pub(super) fn wait(&self, doing: &str) -> Result<()> {
        self.stream.synchronize().map_err(|e| self.error(doing, e))
    }
}

/// What to do about a failed call.
fn advice(error: DriverError) -> &'static str {
    use CUresult as R;
    match error.0 {
        R::CUDA_ERROR_OUT_OF_MEMORY => {
            "use a smaller batch, close other programs on the GPU, or use --device cpu"
        }
        R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | R::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "update the NVIDIA driver, or use --device cpu"
        }
        R::CUDA_ERROR_NO_BINARY_FOR_GPU => "this GPU is not supported by the kernels; use --device cpu",
        R::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE => {
            "other programs hold a part of the GPU (by MPS?); close them, or do without blocks that wait for each other: \
             RECURVE_CUDA_PATH=cells"
        }
        R::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            "another program holds the GPU alone; close it, choose another with --device cuda:N, or use --device cpu"
        }
        R::CUDA_ERROR_ILLEGAL_ADDRESS
        | R::CUDA_ERROR_MISALIGNED_ADDRESS
        | R::CUDA_ERROR_LAUNCH_FAILED
        | R::CUDA_ERROR_LAUNCH_TIMEOUT
        | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR
        | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | R::CUDA_ERROR_INVALID_PC
        | R::CUDA_ERROR_ASSERT
        | R::CUDA_ERROR_ECC_UNCORRECTABLE => {
            "what the device held since the last checkpoint is lost, the checkpoint file is not: continue from it \
             with recurve train --resume, or use --device cpu"
        }
        _ => "try again, or use --device cpu",
    }
}

/// The error about kernels that would not load.
fn unloadable(label: &str, name: &str, driver: i32, why: &str) -> Error {
    let advice = if driver < MIN_DRIVER {
        format!(
            "the driver is for CUDA {}, the kernels need one for {} or newer; update it, or use --device cpu",
            version_name(driver),
            version_name(MIN_DRIVER)
        )
    } else {
        format!("the driver is for CUDA {}; update it, or use --device cpu", version_name(driver))
    };
    Error::device(label, format!("{name}: none of the kernels' images can be loaded ({why}); {advice}"))
}

/// The compiled kernel file.
fn compiled(stem: &str) -> Result<&'static Compiled, String> {
    image::module(stem).ok_or_else(|| format!("this build holds no {stem}"))
}

type Loaded = (LoadedImage, Vec<String>, Vec<Module>, Kernels);

/// Tries the images in order of preference.
fn load(cuda: &Arc<CudaContext>, choice: ImageChoice, capability: (i32, i32)) -> Result<Loaded, String> {
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
    for candidate in candidates {
        match load_image(cuda, &candidate) {
            Ok((modules, kernels)) => return Ok((candidate, refused, modules, kernels)),
            Err(why) => refused.push(format!("{candidate}: {why}")),
        }
    }
    Err(refused.join("; "))
}

/// `sm_90a` as a compute capability.
fn architecture(name: &str) -> Option<(i32, i32)> {
    let digits = name.strip_prefix("sm_")?.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let number: i32 = digits.parse().ok()?;
    Some((number / 10, number % 10))
}

/// Loads one image of every kernel file and looks up all kernels.
fn load_image(cuda: &Arc<CudaContext>, which: &LoadedImage) -> Result<(Vec<Module>, Kernels), String> {
    let mut stems = STEMS.to_vec();
    stems.sort_unstable();
    stems.dedup();
    let mut modules = Vec::with_capacity(stems.len());
    for stem in &stems {
        let compiled = compiled(stem)?;
        let bytes = match which {
            LoadedImage::Cubin(arch) => {
                let cubin = compiled.cubins.iter().find(|cubin| cubin.arch == *arch);
                cubin.map(|cubin| cubin.bytes.to_vec())
            }
            LoadedImage::BuiltPtx => compiled.built_ptx.or(compiled.committed_ptx).map(terminated),
            LoadedImage::CommittedPtx => compiled.committed_ptx.map(terminated),
        };
        let bytes = bytes.ok_or_else(|| format!("{stem} is not among what this build holds of it"))?;
        modules.push(load_module(cuda, &bytes).map_err(|why| format!("{stem}: {why}"))?);
    }
    let kernels = Kernels::load(|stem, name| {
        let module = stems.iter().position(|s| *s == stem).and_then(|at| modules.get(at));
        let module = module.ok_or_else(|| format!("{stem} is not loaded"))?;
        let c_name = CString::new(name).map_err(|_| format!("{name} holds a zero byte"))?;
        // SAFETY: the module is loaded and outlives the function: both go into the same `Context`.
        let function = unsafe { result::module::get_function(module.handle, c_name) }
            .map_err(|e| format!("{stem} has no kernel {name}: {}", driver_words(e)))?;
        let parameters = compiled(stem)?.parameters(name);
        let parameters = parameters.ok_or_else(|| format!("the PTX of {stem} does not declare {name}"))?;
        Ok(Kernel { function, name, parameters })
    })?;
    Ok((modules, kernels))
}

/// PTX reaches the driver as a string that ends with a zero.
fn terminated(ptx: &'static str) -> Vec<u8> {
    let mut bytes = ptx.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// Loads a module. `image` is a cubin, or PTX with a zero at its end.
fn load_module(cuda: &Arc<CudaContext>, image: &[u8]) -> Result<Module, String> {
    cuda.bind_to_thread().map_err(driver_words)?;
    // SAFETY: the image is whole, a cubin knows its own length and PTX ends with a zero; the driver copies it.
    match unsafe { result::module::load_data(image.as_ptr().cast()) } {
        Ok(handle) => Ok(Module { handle, cuda: cuda.clone() }),
        Err(error) => {
            let words = driver_words(error);
            Err(match compiler_log(image) {
                Some(log) => format!("{words}: {log}"),
                None => words,
            })
        }
    }
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

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(version_name(12_010), "12.1");
        assert_eq!(version_name(11_080), "11.8");
        assert_eq!(version_name(13_000), "13.0");
    }
}
