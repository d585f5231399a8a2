//! The driver, and a device with what belongs to it.
//!
//! Nothing here is reached when there is no driver: the library that speaks for it is looked for first, and each of its
//! functions that this crate calls, because calling one that is not there would be a panic.

use super::buffer::Staging;
use super::kernels::{Function, ImageChoice, Kernel, Kernels, Loader};
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use cudarc::driver::{CudaContext, CudaStream};
use std::ffi::CStr;
use std::fmt;
use std::sync::{Arc, Mutex};

/// The oldest compute capability that the kernels are compiled for.
const MIN_CAPABILITY: (i32, i32) = (7, 5);
/// The driver's CUDA version that reads the kernels' PTX (ISA 8.1).
const MIN_DRIVER: i32 = 12_010;

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

/// A device with the kernels on it, and one stream on which everything happens in order.
pub(super) struct Context {
    /// As the user names it: `cuda:0`.
    pub(super) label: String,
    pub(super) name: String,
    pub(super) capability: (i32, i32),
    pub(super) memory: usize,
    driver: i32,
    pub(super) kernels: Kernels,
    pub(super) loader: Loader,
    /// Bytes of shared memory that a block of the fused kernels can have.
    pub(super) fused_bytes: usize,
    pub(super) multiprocessors: u32,
    /// Whether blocks can be launched together, to wait for each other.
    pub(super) cooperative: bool,
    pub(super) staging: Mutex<Option<Staging>>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) cuda: Arc<CudaContext>,
}

// SAFETY: the only fields that are not Send and Sync by themselves are handles of modules and functions in `loader`. These are
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
            .field("image", &self.loader.image)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// Opens device `ordinal` and finds an image of the kernels that loads on it.
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
        let opt_in = u32::try_from(opt_in).unwrap_or(0);
        let (kernels, loader) = Loader::open(&cuda, choice, capability, opt_in)
            .map_err(|why| unloadable(&label, &name, driver, &why))?;
        Ok(Self {
            label,
            name,
            capability,
            memory,
            driver,
            kernels,
            loader,
            fused_bytes: opt_in as usize,
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
            self.loader.image,
            self.driver_version()
        )
    }

    /// A failed call of the driver, in words: what was being done, what the driver said, what to do.
    pub(super) fn error(&self, doing: &str, error: DriverError) -> Error {
        Error::device(&self.label, format!("{doing}: {}; {}", driver_words(error), advice(error)))
    }

    /// What launches the kernel, loaded now if it has not been; None where a recording lacks it.
    pub(super) fn function(&self, kernel: &Kernel) -> Result<Option<&Function>> {
        self.loader.function(kernel).map_err(|why| self.unloadable(&why))
    }

    /// Rows of U that the kernel, one for 128 units, has shared memory for; 0 where a recording lacks it.
    pub(super) fn staged_rows(&self, kernel: &Kernel) -> Result<u32> {
        self.loader.staged_rows(kernel).map_err(|why| self.unloadable(&why))
    }

    fn unloadable(&self, why: &str) -> Error {
        unloadable(&self.label, &self.name, self.driver, &format!("{}: {why}", self.loader.image))
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
    Error::device(label, format!("{name}: the kernels cannot be loaded ({why}); {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(version_name(12_010), "12.1");
        assert_eq!(version_name(11_080), "11.8");
        assert_eq!(version_name(13_000), "13.0");
    }
}
