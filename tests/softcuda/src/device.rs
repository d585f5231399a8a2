//! The device: memory, modules and launches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::counters::KernelCounters;
use crate::exec::{Block, Launch};
use crate::fault::{Error, Fault};
use crate::grid::Grid;
use crate::memory::{LAUNCH_NUMBERS, MAX_TRACKED, Memory};
use crate::ptx::decode::decode;
use crate::ptx::ir::{Kernel, Var};
use crate::ptx::parser::parse;

/// Most shared memory of a block, static and dynamic, as of the devices the kernels are compiled for (compute_75).
pub const MAX_SHARED: u32 = 64 * 1024;
/// Shared memory of a block without opting in to more.
pub const DEFAULT_SHARED: u32 = 48 * 1024;

/// Rounds that a block of an ordered grid has at once, at most, before others have their turn.
const ROUNDS: usize = 64;

/// A loaded module: kernels and variables.
#[derive(Debug)]
pub struct Module {
    source: String,
    kernels: Vec<Kernel>,
    vars: HashMap<String, (u64, u64)>,
}

impl Module {
    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// Where in the module the kernel of this name is, for [`Device::run`].
    pub fn index(&self, name: &str) -> Option<usize> {
        self.kernels.iter().position(|k| k.name == name)
    }

    /// The kernel at an index.
    pub fn at(&self, index: usize) -> Option<&Kernel> {
        self.kernels.get(index)
    }

    /// Names of the kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|k| k.name.as_str())
    }

    /// Address and size of a module-scope variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.vars.get(name).copied()
    }
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Blocks along each axis.
    pub grid: [u32; 3],
    /// Threads of a block along each axis.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
}

impl Shape {
    /// `blocks` blocks of `threads` threads along x, without dynamic shared memory.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 }
    }
}

/// What a launch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Instructions times the lanes that executed them.
    pub lane_instructions: u64,
    /// All counts; `launches` is 1.
    pub counters: KernelCounters,
}

/// How a launch is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// Shared memory a block may have.
    pub max_shared: u32,
    /// All blocks are alive at once and take turns, so that they may wait for each other.
    pub cooperative: bool,
    /// Sectors and bank conflicts are counted.
    pub detail: bool,
    /// Races between blocks in global memory are looked for.
    pub races: bool,
}

/// A software CUDA device.
#[derive(Debug)]
pub struct Device {
    pub(crate) memory: Memory,
    /// Host threads that execute blocks.
    pub threads: usize,
    /// Warp instructions one launch may execute.
    pub budget: u64,
    /// Shared memory a block may have.
    pub max_shared: u32,
    /// Whether sectors and bank conflicts are counted.
    pub detail: bool,
    /// Whether races between blocks in global memory are looked for. Relaxed and volatile accesses race with others, not with each other.
    /// Kernels with fences, acquires or releases may order their blocks: cooperative launches of them are looked at by
    /// [`grid`](crate::grid), with accesses of every width and atomic operations; other launches of them are left out. So are,
    /// of other kernels, accesses of less than four bytes and atomic operations.
    pub races: bool,
    launches: AtomicU64,
}

impl Default for Device {
    fn default() -> Self {
        Self::numbered(0, 4 << 30)
    }
}

impl Device {
    /// One of several devices, with `limit` bytes of memory.
    pub fn numbered(index: u16, limit: u64) -> Self {
        Device {
            memory: Memory::of_device(index, limit),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            budget: 1 << 32,
            max_shared: DEFAULT_SHARED,
            detail: false,
            races: true,
            launches: AtomicU64::new(0),
        }
    }
}

impl Device {
    /// A device of 4 GiB, with a host thread for every core.
    pub fn new() -> Self {
        Self::default()
    }

    /// `size` bytes of memory, nothing of them written. Returns their address.
    pub fn alloc(&mut self, size: u64) -> Result<u64, Error> {
        self.memory.alloc(size, false)
    }

    /// Ends an allocation.
    pub fn free(&mut self, address: u64) -> Result<(), Error> {
        self.memory.free(address)
    }

    /// Copies `bytes` to the device.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.memory.write(address, bytes)
    }

    /// Copies from the device; what nothing wrote is an error.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Error> {
        self.memory.read(address, out)
    }

    /// Bytes allocated, and the most that can be.
    pub fn usage(&self) -> (u64, u64) {
        self.memory.usage()
    }

    /// Loads PTX. Everything in it that this device cannot execute is an error here, not later.
    pub fn load_module(&mut self, source: &str) -> Result<Module, Error> {
        let ast = parse(source)?;
        let mut vars = HashMap::new();
        let placed: Vec<&Var> = ast.vars.iter().filter(|v| v.space != "shared").collect();
        for v in placed {
            let address = self.memory.alloc(v.size, v.space == "const")?;
            // Variables without an initialiser are zero, as in C.
            let mut bytes = v.init.clone();
            bytes.resize(v.size as usize, 0);
            self.memory.write(address, &bytes)?;
            vars.insert(v.name.clone(), (address, v.size));
        }
        let symbols = vars.iter().map(|(n, (a, _))| (n.clone(), *a)).collect();
        match decode(source, &ast, &symbols) {
            Ok(kernels) => Ok(Module { source: source.into(), kernels, vars }),
            Err(e) => {
                for (address, _) in vars.values() {
                    self.memory.free(*address)?;
                }
                Err(e)
            }
        }
    }

    /// Unloads a module: its variables are gone.
    pub fn unload(&mut self, module: &Module) -> Result<(), Error> {
        module.vars.values().try_for_each(|(a, _)| self.memory.free(*a))
    }

    /// Runs a kernel to its end. `args` are the parameters in order, each as its bytes.
    ///
    /// Blocks run on several host threads. Where several blocks are at fault, the fault of the first of them is returned.
    pub fn launch(
        &mut self,
        module: &Module,
        kernel: &str,
        shape: Shape,
        args: &[&[u8]],
    ) -> Result<Stats, Error> {
        let Some(k) = module.kernel(kernel) else {
            return Err(Error::Launch(format!("no kernel `{kernel}` in the module")));
        };
        let params = pack(k, args)?;
        let how =
            How { max_shared: self.max_shared, cooperative: false, detail: self.detail, races: self.races };
        self.run(module, k, shape, &params, how)
    }

    /// Runs a kernel of `module` whose parameter block is given, to its end.
    pub fn run(
        &self,
        module: &Module,
        k: &Kernel,
        shape: Shape,
        params: &[u8],
        how: How,
    ) -> Result<Stats, Error> {
        check(k, shape, how.max_shared)?;
        let allocs = self.memory.snapshot();
        let blocks: u64 = shape.grid.iter().map(|n| u64::from(*n)).product();
        let number = 1 + self.launches.fetch_add(1, Relaxed) % (LAUNCH_NUMBERS - 1);
        let told_apart = how.races && blocks > 1 && blocks <= MAX_TRACKED;
        let races = (told_apart && !k.orders).then_some(number);
        let launch = Launch {
            kernel: k,
            source: &module.source,
            grid: shape.grid,
            block: shape.block,
            dynamic: shape.dynamic_shared,
            params,
            detail: how.detail,
            races,
            allocs: &allocs,
            memory: &self.memory,
        };
        let [gx, gy, gz] = shape.grid.map(|g| g as usize);
        let total = gx * gy * gz;
        let (next, first_bad) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        let (left, done) = (AtomicU64::new(self.budget), AtomicU64::new(0));
        let worst: Mutex<Option<(usize, Fault)>> = Mutex::new(None);
        let spend = |n: u64| left.fetch_update(Relaxed, Relaxed, |l| l.checked_sub(n)).is_ok();
        let counts = Mutex::new(KernelCounters { launches: 1, blocks: total as u64, ..Default::default() });
        let add = |block: &Block| {
            let mut c = counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            c.classes(&block.counts.classes);
            c.add(&block.counts.detail);
            done.fetch_add(block.lane_instructions(), Relaxed);
        };
        if how.cooperative {
            let mut blocks = Vec::with_capacity(total);
            for i in 0..total {
                let mut block = Block::new(&launch);
                block.start([(i % gx) as u32, (i / gx % gy) as u32, (i / gx / gy) as u32]);
                blocks.push((block, false));
            }
            let warps = shape.block.iter().product::<u32>().div_ceil(32) as usize;
            let ordered = told_apart && k.orders;
            let rounds = if ordered { ROUNDS } else { 1 };
            let mut grid = ordered.then(|| Box::new(Grid::new(k, total, warps, allocs.len())));
            while blocks.iter().any(|(_, ended)| !ended) {
                for at in 0..total {
                    let mut round = |(block, ended): &mut (Block, bool)| {
                        *ended = block.round_in(&mut grid, &spend).map_err(|f| Error::Fault(Box::new(f)))?;
                        Ok::<_, Error>(grid.as_mut().is_some_and(|g| std::mem::take(&mut g.news)))
                    };
                    // In a grid that orders itself a block goes on until it may have to wait, or is about to overrun others, and whoever
                    // waits sees at once what it released: so one that waits too little goes on too early, and is found.
                    let mut releases = 0;
                    for _ in 0..rounds {
                        if blocks[at].1 {
                            break;
                        }
                        if round(&mut blocks[at])? {
                            releases += 1;
                            let others = blocks.iter_mut().enumerate().filter(|(i, _)| *i != at);
                            others
                                .filter(|(_, b)| b.0.waits && !b.1)
                                .try_for_each(|(_, b)| round(b).map(drop))?;
                        }
                        if blocks[at].0.waits || releases > 1 {
                            break;
                        }
                    }
                }
            }
            blocks.iter().for_each(|(b, _)| add(b));
        }
        let work = || {
            let mut block = Block::new(&launch);
            loop {
                let i = next.fetch_add(1, Relaxed);
                // Blocks before a faulty one still run: the fault that is told does not depend on the schedule.
                if i >= total || i > first_bad.load(Relaxed) {
                    break;
                }
                let id = [(i % gx) as u32, (i / gx % gy) as u32, (i / gx / gy) as u32];
                if let Err(fault) = block.run(id, &spend) {
                    first_bad.fetch_min(i, Relaxed);
                    let mut worst = worst.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if worst.as_ref().is_none_or(|(at, _)| i < *at) {
                        *worst = Some((i, fault));
                    }
                    break;
                }
            }
            add(&block);
        };
        let workers = self.threads.clamp(1, total);
        if how.cooperative {
        } else if workers == 1 {
            work();
        } else {
            std::thread::scope(|s| (0..workers).for_each(|_| drop(s.spawn(work))));
        }
        match worst.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((_, fault)) => Err(Error::Fault(Box::new(fault))),
            None => Ok(Stats {
                lane_instructions: done.into_inner(),
                counters: counts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
            }),
        }
    }
}

/// Whether a launch of this shape can be.
pub fn check(k: &Kernel, shape: Shape, max_shared: u32) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::Launch(format!("kernel `{}`: {why}", k.name)));
    let threads: u64 = shape.block.iter().map(|n| u64::from(*n)).product();
    if shape.grid.contains(&0) || shape.block.contains(&0) {
        return refuse(format!("grid {:?} and block {:?} must have no side of 0", shape.grid, shape.block));
    }
    if threads > u64::from(k.max_threads)
        || shape.block[0] > 1024
        || shape.block[1] > 1024
        || shape.block[2] > 64
    {
        return refuse(format!(
            "a block of {:?} is {threads} threads, at most {} are allowed",
            shape.block, k.max_threads
        ));
    }
    if shape.grid[0] > i32::MAX as u32 || shape.grid[1] > 65535 || shape.grid[2] > 65535 {
        return refuse(format!("a grid of {:?} blocks is too large", shape.grid));
    }
    let shared = u64::from(k.shared_static) + u64::from(shape.dynamic_shared);
    if shared > u64::from(max_shared) {
        return refuse(format!("{shared} bytes of shared memory, at most {max_shared} are allowed"));
    }
    Ok(())
}

/// The sizes of every kernel's parameters in order, by the kernel's name: for tests that compare them with what the host passes.
pub fn signatures(ptx: &str) -> Result<std::collections::BTreeMap<String, Vec<u32>>, Error> {
    let module = Device::new().load_module(ptx)?;
    Ok(module.kernels.iter().map(|k| (k.name.clone(), k.params.iter().map(|p| p.size).collect())).collect())
}

/// The parameter block of `args`, each checked against the kernel's layout.
fn pack(k: &Kernel, args: &[&[u8]]) -> Result<Vec<u8>, Error> {
    if args.len() != k.params.len() {
        return Err(Error::Launch(format!(
            "kernel `{}` takes {} arguments, {} were given",
            k.name,
            k.params.len(),
            args.len()
        )));
    }
    let mut out = vec![0; k.param_bytes as usize];
    for (i, (arg, p)) in args.iter().zip(&k.params).enumerate() {
        if arg.len() != p.size as usize {
            return Err(Error::Launch(format!(
                "kernel `{}`: argument {i} has {} bytes, {} were given",
                k.name,
                p.size,
                arg.len()
            )));
        }
        out[p.offset as usize..(p.offset + p.size) as usize].copy_from_slice(arg);
    }
    Ok(out)
}

/// Modules may be shared between threads that launch them.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<Module>>();
};
