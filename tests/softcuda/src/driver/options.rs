//! Options, from the environment and changed while running.

/// What can be set. Each is read from the environment once, when the library is first used:
///
/// | Variable | Meaning |
/// | --- | --- |
/// | `SOFTCUDA_DEVICES` | number of devices (1); with 0, `cuInit` says that there is none |
/// | `SOFTCUDA_MEMORY` | bytes of memory of each device (2147483648) |
/// | `SOFTCUDA_DRIVER_VERSION` | as `cuDriverGetVersion` gives it (12010); decides which PTX versions are accepted |
/// | `SOFTCUDA_COMPUTE_CAPABILITY` | `7.5` (the default) or `75`; decides which `.target` is accepted and how much shared memory there is |
/// | `SOFTCUDA_MULTIPROCESSORS` | multiprocessors (40, as of a Tesla T4): bounds a cooperative launch |
/// | `SOFTCUDA_THREADS` | host threads that execute blocks (all cores) |
/// | `SOFTCUDA_BUDGET` | warp instructions a launch may execute (4294967296); more is a timeout |
/// | `SOFTCUDA_FAIL_LAUNCH` | the n-th kernel executed from now faults; 0 is none |
/// | `SOFTCUDA_FAIL_ALLOC` | the n-th allocation from now finds no memory; 0 is none |
/// | `SOFTCUDA_DETAIL` | 1: sectors and bank conflicts are counted too |
/// | `SOFTCUDA_RACES` | 0: races between blocks in global memory are not looked for (1) |
/// | `SOFTCUDA_COUNTERS` | a file; a line of JSON with all counts is appended when a context or the process ends |
/// | `SOFTCUDA_REPLACE` | a folder: PTX is replaced by its file with the same kernels, if there is one; for mutants of kernels |
/// | `SOFTCUDA_QUIET` | 1: faults and refusals are not written to stderr |
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Devices.
    pub devices: u64,
    /// Bytes of memory of each.
    pub memory: u64,
    /// The driver's version.
    pub driver_version: u64,
    /// 10 times the major number and the minor number.
    pub compute_capability: u64,
    /// Multiprocessors of each device.
    pub multiprocessors: u64,
    /// Host threads that execute blocks.
    pub threads: u64,
    /// Warp instructions a launch may execute.
    pub budget: u64,
    /// Kernels until one is made to fault.
    pub fail_launch: u64,
    /// Allocations until one is refused.
    pub fail_alloc: u64,
    /// Whether sectors and bank conflicts are counted.
    pub detail: u64,
    /// Whether races between blocks are looked for.
    pub races: u64,
    /// Whether stderr stays empty.
    pub quiet: u64,
    /// Address that ends every array of kernel arguments, if the host promised one.
    pub arguments_end: u64,
    /// Where PTX is found that takes the place of what is loaded.
    pub replace: Option<String>,
    /// Where counts are written at the end.
    pub counters: Option<String>,
}

impl Options {
    /// From the environment.
    pub fn from_env() -> Options {
        let get = |name: &str| std::env::var(format!("SOFTCUDA_{name}")).ok().filter(|v| !v.is_empty());
        let number = |name: &str, default: u64| match get(name) {
            None => default,
            Some(v) => v.trim().replace('.', "").parse().unwrap_or_else(|_| {
                eprintln!("softcuda: SOFTCUDA_{name}={v} is no number, {default} is used");
                default
            }),
        };
        Options {
            devices: number("DEVICES", 1).min(16),
            memory: number("MEMORY", 2 << 30),
            driver_version: number("DRIVER_VERSION", 12010),
            compute_capability: number("COMPUTE_CAPABILITY", 75),
            multiprocessors: number("MULTIPROCESSORS", 40).max(1),
            threads: number("THREADS", std::thread::available_parallelism().map_or(1, |n| n.get() as u64)),
            budget: number("BUDGET", 1 << 32),
            fail_launch: number("FAIL_LAUNCH", 0),
            fail_alloc: number("FAIL_ALLOC", 0),
            detail: number("DETAIL", 0),
            races: number("RACES", 1),
            quiet: number("QUIET", 0),
            arguments_end: 0,
            replace: get("REPLACE"),
            counters: get("COUNTERS"),
        }
    }

    /// The option of this name.
    pub fn at(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "devices" => &mut self.devices,
            "memory" => &mut self.memory,
            "driver_version" => &mut self.driver_version,
            "compute_capability" => &mut self.compute_capability,
            "multiprocessors" => &mut self.multiprocessors,
            "threads" => &mut self.threads,
            "budget" => &mut self.budget,
            "fail_launch" => &mut self.fail_launch,
            "fail_alloc" => &mut self.fail_alloc,
            "detail" => &mut self.detail,
            "races" => &mut self.races,
            "quiet" => &mut self.quiet,
            "arguments_end" => &mut self.arguments_end,
            _ => return None,
        })
    }

    /// The newest PTX version that the driver knows, times 10.
    pub fn ptx(&self) -> u64 {
        match self.driver_version {
            v if v >= 13000 => 90 + (v - 13000) / 10,
            v if v >= 12080 => 87 + (v - 12080) / 10,
            v if v >= 12050 => 85,
            v if v >= 12000 => 80 + (v - 12000) / 10,
            v if v >= 11000 => 70 + (v - 11000) / 10,
            _ => 65,
        }
    }

    /// Shared memory of a block that opts in, and of a multiprocessor, in bytes.
    pub fn shared(&self) -> (u32, u32) {
        let (block, sm) = match self.compute_capability {
            ..70 => (48, 96),
            70..75 => (96, 96),
            75..80 => (64, 64),
            80 => (163, 164),
            86 | 89 => (99, 100),
            87 => (163, 164),
            120.. => (99, 100),
            _ => (227, 228),
        };
        (block * 1024, sm * 1024)
    }

    /// Most threads and most blocks of a multiprocessor.
    pub fn resident(&self) -> (u32, u32) {
        match self.compute_capability {
            75 => (1024, 16),
            86 | 87 => (1536, 16),
            89 => (1536, 24),
            120.. => (1536, 24),
            _ => (2048, 32),
        }
    }
}
