//! What the driver counts, and the text in which the counts leave the shared object.

use std::collections::BTreeMap;
use std::fmt::Write;

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $f:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $f: u64,)* }

        impl $name {
            /// Every count with its name.
            pub fn list(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($f), self.$f)),*].into_iter()
            }

            /// The count of this name.
            pub fn at(&mut self, name: &str) -> Option<&mut u64> {
                match name { $(stringify!($f) => Some(&mut self.$f),)* _ => None }
            }

            /// Adds another's counts to these.
            pub fn add(&mut self, other: &Self) {
                $(self.$f += other.$f;)*
            }
        }
    };
}

counters! {
    /// What a process or a context did.
    Totals {
        /// Kernels launched by themselves, captured ones not counted.
        direct_launches,
        /// Graphs launched: each counts as one launch.
        graph_launches,
        /// Kernels that graphs ran.
        graph_kernel_nodes,
        /// Copies and fills that graphs ran.
        graph_other_nodes,
        /// Waits of the host: for a context, a stream or an event.
        synchronisations,
        /// Copies that held the host: synchronous ones, and those to memory that is not pinned.
        blocking_copies,
        /// Copies to the device, when executed.
        htod_copies,
        /// Their bytes.
        htod_bytes,
        /// Copies to the host, when executed.
        dtoh_copies,
        /// Their bytes.
        dtoh_bytes,
        /// Copies on the device, when executed.
        dtod_copies,
        /// Their bytes.
        dtod_bytes,
        /// Fills, when executed.
        memsets,
        /// Device allocations.
        allocations,
        /// Device allocations ended.
        frees,
        /// Events recorded.
        event_records,
        /// Waits of a stream for an event.
        event_waits,
    }
}

counters! {
    /// What the launches of one kernel did. Instructions are counted for every thread that executes them.
    KernelCounters {
        /// Launches, by themselves and in graphs, that ran without a fault.
        launches,
        /// Blocks.
        blocks,
        /// Instructions of warps, whatever the number of their threads.
        warp_instructions,
        /// Arithmetic and comparisons in f32, without fused multiply-adds.
        fp32,
        /// Fused multiply-adds in f32: two operations each.
        fma32,
        /// Arithmetic in f64.
        fp64,
        /// Integer arithmetic, comparisons and bit operations.
        int,
        /// Conversions.
        conversion,
        /// ex2, lg2, sin, cos, tanh, rcp, rsqrt, sqrt and div of floats.
        special,
        /// Loads of global or constant memory, and of generic addresses.
        load_global,
        /// Stores to global memory and generic addresses.
        store_global,
        /// Loads of shared memory.
        load_shared,
        /// Stores to shared memory.
        store_shared,
        /// Loads and stores of local memory.
        local,
        /// Atomic operations and reductions on memory.
        atomic,
        /// Branches, returns and exits.
        control,
        /// Barriers of blocks and warps, and fences, for every thread.
        barrier,
        /// Shuffles and votes.
        shuffle,
        /// Moves, selections and the rest.
        other,
        /// Block barriers of warps.
        warp_barriers,
        /// Warp-wide loads of global memory (only while detail is on).
        global_loads,
        /// 32-byte sectors that they touched.
        global_load_sectors,
        /// Warp-wide stores to global memory (only while detail is on).
        global_stores,
        /// 32-byte sectors that they touched.
        global_store_sectors,
        /// Warp-wide accesses to shared memory (only while detail is on).
        shared_accesses,
        /// Passes over shared memory that they take.
        shared_passes,
        /// How many of these are due to bank conflicts.
        bank_conflicts,
    }
}

/// The number of classes of instructions.
pub const CLASSES: usize = 17;

/// The class of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Class {
    Fp32,
    Fma32,
    Fp64,
    Int,
    Conversion,
    Special,
    LoadGlobal,
    StoreGlobal,
    LoadShared,
    StoreShared,
    Local,
    Atomic,
    Control,
    Barrier,
    Shuffle,
    #[default]
    Other,
    WarpBarrier,
}

impl KernelCounters {
    /// Takes over counts by class.
    pub fn classes(&mut self, n: &[u64; CLASSES]) {
        let all = [
            &mut self.fp32,
            &mut self.fma32,
            &mut self.fp64,
            &mut self.int,
            &mut self.conversion,
            &mut self.special,
            &mut self.load_global,
            &mut self.store_global,
            &mut self.load_shared,
            &mut self.store_shared,
            &mut self.local,
            &mut self.atomic,
            &mut self.control,
            &mut self.barrier,
            &mut self.shuffle,
            &mut self.other,
            &mut self.warp_barriers,
        ];
        for (to, n) in all.into_iter().zip(n) {
            *to += n;
        }
    }

    /// Instructions of threads, all classes together.
    pub fn instructions(&self) -> u64 {
        self.fp32
            + self.fma32
            + self.fp64
            + self.int
            + self.conversion
            + self.special
            + self.load_global
            + self.store_global
            + self.load_shared
            + self.store_shared
            + self.local
            + self.atomic
            + self.control
            + self.barrier
            + self.shuffle
            + self.other
    }
}

/// All counts: the totals, and those of every kernel by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// What is not of one kernel.
    pub totals: Totals,
    /// By kernel.
    pub kernels: BTreeMap<String, KernelCounters>,
}

impl Counters {
    /// The counts of a kernel; all 0 if it never ran.
    pub fn kernel(&self, name: &str) -> KernelCounters {
        self.kernels.get(name).copied().unwrap_or_default()
    }

    /// Adds another's counts to these.
    pub fn add(&mut self, other: &Counters) {
        self.totals.add(&other.totals);
        for (name, k) in &other.kernels {
            self.kernels.entry(name.clone()).or_default().add(k);
        }
    }

    /// As text: a line per count, kernels after a line with their name.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for (name, n) in self.totals.list() {
            let _ = writeln!(out, "{name} {n}");
        }
        for (kernel, k) in &self.kernels {
            let _ = writeln!(out, "kernel {kernel}");
            for (name, n) in k.list() {
                let _ = writeln!(out, "{name} {n}");
            }
        }
        out
    }

    /// From the text of [`to_text`](Self::to_text); names that are not known are left out.
    pub fn from_text(text: &str) -> Counters {
        let mut out = Counters::default();
        let mut kernel: Option<String> = None;
        for (name, value) in text.lines().filter_map(|l| l.split_once(' ')) {
            if name == "kernel" {
                out.kernels.entry(value.into()).or_default();
                kernel = Some(value.into());
                continue;
            }
            let at = match &kernel {
                None => out.totals.at(name),
                Some(k) => out.kernels.get_mut(k).and_then(|k| k.at(name)),
            };
            if let (Some(at), Ok(n)) = (at, value.parse()) {
                *at = n;
            }
        }
        out
    }

    /// As one line of JSON.
    pub fn to_json(&self) -> String {
        let fields = |list: &mut dyn Iterator<Item = (&'static str, u64)>| {
            list.map(|(n, v)| format!("\"{n}\":{v}")).collect::<Vec<_>>().join(",")
        };
        let kernels: Vec<String> =
            self.kernels.iter().map(|(n, k)| format!("{n:?}:{{{}}}", fields(&mut k.list()))).collect();
        format!("{{{},\"kernels\":{{{}}}}}", fields(&mut self.totals.list()), kernels.join(","))
    }
}
