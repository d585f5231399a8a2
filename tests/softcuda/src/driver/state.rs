//! The driver's state and what its calls do to it, without a pointer of C in it but those to host memory that copies name.
//!
//! Work of streams is queued and runs only when something waits for it, and then no more of it than must: what a stream was not told to
//! wait for has most likely not happened. Every queued piece knows the pieces of other streams that must come before it, from event
//! waits and from the rules of the legacy stream.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::Instant;

use super::codes::{Code, R};
use super::host;
use super::options::Options;
use crate::counters::Counters;
use crate::device::{DEFAULT_SHARED, Device, How, Module, Shape, check};
use crate::fault::{Error, Fault, FaultKind};

/// A handle: never an address, never given twice.
pub type Id = u64;

/// A device and its primary context.
pub struct Dev {
    /// The device.
    pub device: Device,
    primary: Option<Id>,
    retained: u32,
}

/// A context.
pub struct Context {
    /// Its device.
    pub device: usize,
    /// Its flags.
    pub flags: u32,
    error: Option<Code>,
    legacy: Id,
    per_thread: HashMap<ThreadId, Id>,
    /// What it did.
    pub counters: Counters,
    /// The last fault in it.
    pub fault: Option<String>,
}

/// A stream.
pub struct Stream {
    /// Its context.
    pub ctx: Id,
    /// Whether it takes no part in the legacy stream's order.
    pub nonblocking: bool,
    /// Its priority.
    pub priority: i32,
    destroyed: bool,
    queue: VecDeque<Queued>,
    capture: Option<(u64, Vec<usize>)>,
}

struct Queued {
    seq: u64,
    deps: Vec<(Id, u64)>,
    op: Op,
}

/// A copy's source on the host.
#[derive(Clone)]
pub enum Source {
    /// Copied at the call.
    Bytes(Arc<Vec<u8>>),
    /// Pinned memory, read when the copy is executed.
    Pinned(usize, usize),
}

/// A kernel with everything a launch needs.
#[derive(Clone)]
pub struct KernelOp {
    /// Its module.
    pub module: Arc<Module>,
    /// Its place there.
    pub index: usize,
    /// The function's handle.
    pub function: Id,
    /// Its shape.
    pub shape: Shape,
    /// Its parameter block.
    pub params: Vec<u8>,
    /// Whether all blocks must be alive at once.
    pub cooperative: bool,
    /// Shared memory a block may have.
    pub max_shared: u32,
}

/// A piece of work.
#[derive(Clone)]
#[allow(missing_docs)]
pub enum Op {
    Kernel(Box<KernelOp>),
    ToDevice { to: u64, from: Source },
    ToHost { from: u64, to: usize, len: usize, pinned: bool },
    OnDevice { from: u64, to: u64, len: u64 },
    Fill { to: u64, pattern: Vec<u8>, count: u64 },
    Free(u64),
    Record { event: Id, stamp: u64 },
    Nothing,
    Call { function: usize, data: usize },
    Graph(Arc<Vec<Op>>),
}

struct Event {
    ctx: Id,
    timing: bool,
    /// The stream and place of its last record.
    last: Option<(Id, u64)>,
    stamp: u64,
    done: Option<Instant>,
    captured: Option<(u64, Vec<usize>)>,
}

struct Loaded {
    ctx: Id,
    module: Arc<Module>,
    ptx: u64,
    target: u64,
}

/// A kernel of a module.
#[derive(Clone)]
pub struct Function {
    /// Its module.
    pub module: Id,
    /// The context of the module.
    pub ctx: Id,
    /// Its place in the module.
    pub index: usize,
    /// Dynamic shared memory that it opted in to.
    pub max_dynamic: u32,
}

/// How strict a capture is with other calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

struct Capture {
    ctx: Id,
    origin: Id,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Node>,
    streams: Vec<Id>,
    invalid: bool,
}

/// A node of a graph.
#[derive(Clone)]
pub struct Node {
    /// Its handle.
    pub id: Id,
    /// What it does.
    pub op: Op,
    /// Nodes before it.
    pub deps: Vec<usize>,
}

/// A graph.
#[derive(Clone)]
pub struct Graph {
    /// Its context.
    pub ctx: Id,
    /// Its nodes; dependencies have lower numbers.
    pub nodes: Vec<Node>,
}

struct Exec {
    graph: Graph,
    ops: Arc<Vec<Op>>,
    order: Vec<usize>,
}

/// Everything.
pub struct State {
    /// Options.
    pub options: Options,
    /// Whether `cuInit` was called.
    pub ready: bool,
    next: u64,
    seq: u64,
    /// Devices.
    pub devices: Vec<Dev>,
    /// Contexts.
    pub contexts: HashMap<Id, Context>,
    /// Streams.
    pub streams: HashMap<Id, Stream>,
    events: HashMap<Id, Event>,
    modules: HashMap<Id, Loaded>,
    /// Functions.
    pub functions: HashMap<Id, Function>,
    /// Graphs.
    pub graphs: HashMap<Id, Graph>,
    execs: HashMap<Id, Exec>,
    captures: HashMap<u64, Capture>,
    owners: HashMap<u64, Id>,
    /// Pools with their attributes, by device.
    pub pools: HashMap<Id, (usize, BTreeMap<u32, u64>)>,
    /// Pinned and registered memory of the host: size, flags, and whether it was allocated here.
    pub pinned: BTreeMap<usize, (usize, u32, bool)>,
    /// Counts of contexts that are gone.
    pub retired: Counters,
    /// The last fault of all.
    pub fault: Option<String>,
}

/// The calling thread.
fn me() -> ThreadId {
    std::thread::current().id()
}

impl State {
    /// A driver before `cuInit`.
    pub fn new() -> State {
        let options = Options::from_env();
        let mut s = State {
            options,
            ready: false,
            next: 0x50f7_0000_0010,
            seq: 0,
            devices: Vec::new(),
            contexts: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            execs: HashMap::new(),
            captures: HashMap::new(),
            owners: HashMap::new(),
            pools: HashMap::new(),
            pinned: BTreeMap::new(),
            retired: Counters::default(),
            fault: None,
        };
        s.apply();
        s
    }

    /// Makes devices and their limits as the options say.
    pub fn apply(&mut self) {
        let n = self.options.devices as usize;
        for i in self.devices.len()..n {
            let device = Device::numbered(i as u16, self.options.memory);
            self.devices.push(Dev { device, primary: None, retained: 0 });
        }
        while self.devices.len() > n && self.devices.last().is_some_and(|d| d.primary.is_none()) {
            self.devices.pop();
        }
        for d in &mut self.devices {
            d.device.memory.set_limit(self.options.memory);
            d.device.threads = self.options.threads as usize;
            d.device.budget = self.options.budget;
        }
    }

    /// Everything as at the start of the process; handles given before are unknown from now on.
    pub fn reset(&mut self) {
        let contexts: Vec<Id> = self.contexts.keys().copied().collect();
        contexts.into_iter().for_each(|c| self.end_context(c));
        let (next, seq) = (self.next, self.seq);
        let pinned = std::mem::take(&mut self.pinned);
        *self = State { next, seq, pinned, ..State::new() };
    }

    /// A new handle.
    pub fn id(&mut self) -> Id {
        self.next += 16;
        self.next
    }

    /// Tells what is wrong, and gives the code back.
    pub fn refuse<T>(&self, code: Code, why: impl std::fmt::Display) -> R<T> {
        if self.options.quiet == 0 {
            eprintln!("softcuda: {why}");
        }
        Err(code)
    }

    // Contexts.

    /// A new context on a device.
    pub fn new_context(&mut self, device: usize, flags: u32) -> Id {
        let (ctx, legacy) = (self.id(), self.id());
        self.streams.insert(legacy, Stream::new(ctx, false, 0));
        self.contexts.insert(
            ctx,
            Context {
                device,
                flags,
                error: None,
                legacy,
                per_thread: HashMap::new(),
                counters: Counters::default(),
                fault: None,
            },
        );
        ctx
    }

    /// The primary context of a device, one more time.
    pub fn retain(&mut self, device: usize) -> Id {
        let ctx = match self.devices[device].primary {
            Some(c) => c,
            None => self.new_context(device, 0),
        };
        let d = &mut self.devices[device];
        d.primary = Some(ctx);
        d.retained += 1;
        ctx
    }

    /// Gives the primary context back; the last one ends it.
    pub fn release(&mut self, device: usize) -> R<()> {
        let d = &mut self.devices[device];
        let Some(ctx) = d.primary else { return Err(Code::INVALID_CONTEXT) };
        d.retained -= 1;
        if d.retained == 0 {
            self.end_context(ctx);
        }
        Ok(())
    }

    /// Whether a device's primary context is alive, and its flags.
    pub fn primary(&self, device: usize) -> Option<u32> {
        self.devices[device].primary.and_then(|c| self.contexts.get(&c)).map(|c| c.flags)
    }

    /// Ends a context with all that is in it. Its queued work runs before, unless it is broken.
    pub fn end_context(&mut self, ctx: Id) {
        let _ = self.run_context(ctx);
        let Some(c) = self.contexts.remove(&ctx) else { return };
        self.retired.add(&c.counters);
        for d in &mut self.devices {
            if d.primary == Some(ctx) {
                d.primary = None;
                d.retained = 0;
            }
        }
        self.captures.retain(|_, c| c.ctx != ctx);
        self.streams.retain(|_, s| s.ctx != ctx);
        self.events.retain(|_, e| e.ctx != ctx);
        self.functions.retain(|_, f| f.ctx != ctx);
        self.graphs.retain(|_, g| g.ctx != ctx);
        self.execs.retain(|_, e| e.graph.ctx != ctx);
        let memory = &mut self.devices[c.device].device;
        for (_, m) in self.modules.extract_if(|_, m| m.ctx == ctx) {
            let _ = memory.unload(&m.module);
        }
        for (at, _) in self.owners.extract_if(|_, o| *o == ctx) {
            let _ = memory.free(at);
        }
        if let Some(file) = &self.options.counters {
            super::write_counters(file, "context", &c.counters);
        }
    }

    /// A context that can be worked in.
    pub fn usable(&self, ctx: Id) -> R<Id> {
        match self.contexts.get(&ctx) {
            None => Err(Code::CONTEXT_IS_DESTROYED),
            Some(Context { error: Some(e), .. }) => Err(*e),
            Some(_) => Ok(ctx),
        }
    }

    /// The counts of a context.
    fn counts(&mut self, ctx: Id) -> Option<&mut Counters> {
        self.contexts.get_mut(&ctx).map(|c| &mut c.counters)
    }

    /// Adds to a count of a context.
    pub fn count(&mut self, ctx: Id, f: impl FnOnce(&mut crate::counters::Totals)) {
        if let Some(c) = self.counts(ctx) {
            f(&mut c.totals);
        }
    }

    /// The context is broken from now on.
    fn broke(&mut self, ctx: Id, code: Code, kind: &str, text: String) -> Code {
        if self.options.quiet == 0 {
            eprintln!("softcuda: fault ({kind}): {text}");
        }
        let text = format!("{kind}\n{text}");
        self.fault = Some(text.clone());
        if let Some(c) = self.contexts.get_mut(&ctx) {
            c.error.get_or_insert(code);
            c.fault = Some(text);
        }
        for s in self.streams.values_mut().filter(|s| s.ctx == ctx) {
            s.queue.clear();
        }
        code
    }

    // Memory.

    fn memory_at(&self, address: u64) -> usize {
        usize::try_from(address >> 48).unwrap_or(0).min(self.devices.len().saturating_sub(1))
    }

    /// Whether `len` bytes of device memory are there.
    pub fn range(&self, address: u64, len: u64) -> R<()> {
        match self.devices[self.memory_at(address)].device.memory.find(address, len) {
            Ok(_) => Ok(()),
            Err(e) => self.refuse(Code::INVALID_VALUE, e),
        }
    }

    /// Device memory.
    pub fn alloc(&mut self, ctx: Id, size: u64) -> R<u64> {
        let device = self.contexts.get(&ctx).map_or(0, |c| c.device);
        if self.options.fail_alloc > 0 {
            self.options.fail_alloc -= 1;
            if self.options.fail_alloc == 0 {
                return self.refuse(Code::OUT_OF_MEMORY, "this allocation was set to fail");
            }
        }
        let memory = &self.devices[device].device.memory;
        let (used, limit) = memory.usage();
        if size > limit.saturating_sub(used) {
            // Frees may be queued.
            self.run_context(ctx)?;
        }
        let at = match self.devices[device].device.alloc(size) {
            Ok(at) => at,
            Err(e) => return self.refuse(Code::OUT_OF_MEMORY, e),
        };
        self.owners.insert(at, ctx);
        self.count(ctx, |t| t.allocations += 1);
        Ok(at)
    }

    /// Ends an allocation at once.
    pub fn free(&mut self, ctx: Id, address: u64) -> R<()> {
        if self.owners.remove(&address).is_none() {
            return self
                .refuse(Code::INVALID_VALUE, format!("free of {address:#x}, which is no live allocation"));
        }
        let at = self.memory_at(address);
        self.count(ctx, |t| t.frees += 1);
        self.devices[at].device.free(address).map_err(|_| Code::INVALID_VALUE)
    }

    /// Whether an address is the start of an allocation made by a call.
    pub fn owned(&self, address: u64) -> bool {
        self.owners.contains_key(&address)
    }

    /// The pinned memory that holds a range of the host.
    pub fn pinned(&self, at: usize, len: usize) -> bool {
        self.pinned
            .range(..=at)
            .next_back()
            .is_some_and(|(b, (size, _, _))| at - b <= *size && len <= size - (at - b))
    }

    // Streams.

    /// The stream a handle means in a context.
    pub fn stream(&mut self, ctx: Id, handle: u64) -> R<Id> {
        let c = self.contexts.get_mut(&ctx).ok_or(Code::INVALID_CONTEXT)?;
        match handle {
            0 | 1 => Ok(c.legacy),
            2 => {
                if let Some(s) = c.per_thread.get(&me()) {
                    return Ok(*s);
                }
                let id = self.id();
                self.streams.insert(id, Stream::new(ctx, false, 0));
                if let Some(c) = self.contexts.get_mut(&ctx) {
                    c.per_thread.insert(me(), id);
                }
                Ok(id)
            }
            _ => match self.streams.get(&handle) {
                Some(s) if !s.destroyed => self.usable(s.ctx).map(|_| handle),
                _ => self.refuse(
                    Code::INVALID_HANDLE,
                    format!("{handle:#x} is no stream, or one that was destroyed"),
                ),
            },
        }
    }

    /// A new stream.
    pub fn new_stream(&mut self, ctx: Id, nonblocking: bool, priority: i32) -> Id {
        let id = self.id();
        self.streams.insert(id, Stream::new(ctx, nonblocking, priority));
        id
    }

    /// Destroys a stream; what is queued still runs.
    pub fn end_stream(&mut self, stream: Id) -> R<()> {
        if let Some((capture, _)) = self.streams.get(&stream).and_then(|s| s.capture.clone()) {
            self.end_capture(capture);
        }
        if let Some(s) = self.streams.get_mut(&stream) {
            s.destroyed = true;
            if s.queue.is_empty() {
                self.streams.remove(&stream);
            }
        }
        Ok(())
    }

    fn legacy(&self, stream: Id) -> bool {
        let ctx = self.streams.get(&stream).map(|s| s.ctx);
        ctx.and_then(|c| self.contexts.get(&c)).is_some_and(|c| c.legacy == stream)
    }

    /// Queues work on a stream, or makes a node of it while the stream captures. Returns its place.
    pub fn enqueue(&mut self, stream: Id, op: Op) -> R<u64> {
        self.enqueue_after(stream, op, None)
    }

    fn enqueue_after(&mut self, stream: Id, op: Op, after: Option<(Id, u64)>) -> R<u64> {
        let Some(s) = self.streams.get(&stream) else { return Err(Code::INVALID_HANDLE) };
        let (ctx, nonblocking) = (s.ctx, s.nonblocking);
        if let Some((capture, deps)) = s.capture.clone() {
            return self.capture_node(stream, capture, deps, op).map(|()| 0);
        }
        let legacy = self.legacy(stream);
        if legacy {
            let caught: Vec<u64> = self
                .streams
                .values()
                .filter(|s| s.ctx == ctx && !s.nonblocking)
                .filter_map(|s| s.capture.as_ref().map(|c| c.0))
                .collect();
            if !caught.is_empty() {
                caught.iter().for_each(|c| self.invalidate(*c));
                return self.refuse(
                    Code::STREAM_CAPTURE_IMPLICIT,
                    "work on the legacy stream while a blocking stream of the context captures",
                );
            }
        }
        let mut deps: Vec<(Id, u64)> = after.into_iter().collect();
        if legacy {
            deps.extend(
                self.streams
                    .iter()
                    .filter(|(id, s)| s.ctx == ctx && !s.nonblocking && **id != stream)
                    .filter_map(|(id, s)| s.queue.back().map(|q| (*id, q.seq))),
            );
        } else if !nonblocking && let Some(c) = self.contexts.get(&ctx) {
            let last = self.streams.get(&c.legacy).and_then(|s| s.queue.back());
            deps.extend(last.map(|q| (c.legacy, q.seq)));
        }
        self.seq += 1;
        let seq = self.seq;
        if let Some(s) = self.streams.get_mut(&stream) {
            s.queue.push_back(Queued { seq, deps, op });
        }
        Ok(seq)
    }

    /// Whether the work of a stream up to a place is still queued.
    fn waits(&self, stream: Id, upto: u64) -> bool {
        self.streams.get(&stream).and_then(|s| s.queue.front()).is_some_and(|q| q.seq <= upto)
    }

    /// Runs a stream up to a place, and of other streams what must come before.
    pub fn run(&mut self, stream: Id, upto: u64) -> R<()> {
        let mut stack = vec![(stream, upto)];
        while let Some((stream, upto)) = stack.last().copied() {
            if !self.waits(stream, upto) {
                stack.pop();
                continue;
            }
            self.step(stream, &mut stack)?;
        }
        Ok(())
    }

    /// Runs the first piece of a stream, or pushes what must run before it.
    fn step(&mut self, stream: Id, stack: &mut Vec<(Id, u64)>) -> R<()> {
        let Some(front) = self.streams.get(&stream).and_then(|s| s.queue.front()) else { return Ok(()) };
        if let Some(dep) = front.deps.iter().find(|(s, q)| self.waits(*s, *q)) {
            stack.push(*dep);
            return Ok(());
        }
        let Some(s) = self.streams.get_mut(&stream) else { return Ok(()) };
        let (ctx, destroyed) = (s.ctx, s.destroyed);
        let Some(item) = s.queue.pop_front() else { return Ok(()) };
        let ended = destroyed && s.queue.is_empty();
        self.execute(ctx, &item.op)?;
        if ended {
            self.streams.remove(&stream);
        }
        Ok(())
    }

    /// One piece of a stream's work, as a query of a busy stream finds it a little further each time.
    fn nudge(&mut self, stream: Id, upto: u64) -> R<()> {
        let mut stack = vec![(stream, upto)];
        let before = self.pending();
        while self.pending() == before && !stack.is_empty() {
            let Some((s, q)) = stack.last().copied() else { break };
            if !self.waits(s, q) {
                stack.pop();
                continue;
            }
            self.step(s, &mut stack)?;
        }
        Ok(())
    }

    /// How many pieces of work are queued.
    pub fn pending(&self) -> usize {
        self.streams.values().map(|s| s.queue.len()).sum()
    }

    /// Runs all that is queued on a stream.
    pub fn run_stream(&mut self, stream: Id) -> R<()> {
        self.run(stream, u64::MAX)
    }

    /// Runs all that is queued in a context, streams in the order of their handles.
    pub fn run_context(&mut self, ctx: Id) -> R<()> {
        let mut all: Vec<Id> = self.streams.iter().filter(|(_, s)| s.ctx == ctx).map(|(id, _)| *id).collect();
        all.sort_unstable();
        all.into_iter().try_for_each(|s| self.run(s, u64::MAX))
    }

    /// Whether a stream is done; a busy one gets one piece further.
    pub fn query_stream(&mut self, stream: Id) -> R<()> {
        if !self.waits(stream, u64::MAX) {
            return Ok(());
        }
        self.nudge(stream, u64::MAX)?;
        Err(Code::NOT_READY)
    }

    // Execution.

    fn execute(&mut self, ctx: Id, op: &Op) -> R<()> {
        self.usable(ctx)?;
        let bad = |s: &mut State, e: Error| {
            let text = format!("a queued copy or fill: {e}");
            let code =
                if text.contains("nothing wrote") { Code::LAUNCH_FAILED } else { Code::ILLEGAL_ADDRESS };
            Err(s.broke(ctx, code, "Copy", text))
        };
        let memory = |s: &State, at: u64| s.memory_at(at);
        match op {
            Op::Nothing => Ok(()),
            Op::Kernel(k) => self.kernel(ctx, k),
            Op::ToDevice { to, from } => {
                let d = memory(self, *to);
                let len = match from {
                    Source::Bytes(b) => b.len(),
                    Source::Pinned(_, len) => *len,
                };
                let done = match from {
                    Source::Bytes(b) => self.devices[d].device.memory.write(*to, b),
                    Source::Pinned(at, len) if self.pinned(*at, *len) => {
                        // SAFETY: the range lies in memory that was pinned and not freed, as was just checked; nothing promises that the
                        // program leaves it alone meanwhile, which is a race of the program on a GPU as well.
                        let bytes = unsafe { host::read(*at, *len) };
                        self.devices[d].device.memory.write(*to, &bytes)
                    }
                    Source::Pinned(..) => Err(Error::Memory("the pinned memory it reads was freed".into())),
                };
                self.count(ctx, |t| {
                    t.htod_copies += 1;
                    t.htod_bytes += len as u64;
                });
                done.or_else(|e| bad(self, e))
            }
            Op::ToHost { from, to, len, pinned } => {
                let mut bytes = vec![0; *len];
                let d = memory(self, *from);
                if let Err(e) = self.devices[d].device.memory.read(*from, &mut bytes) {
                    return bad(self, e);
                }
                if *pinned && !self.pinned(*to, *len) {
                    return bad(self, Error::Memory("the pinned memory it writes was freed".into()));
                }
                // SAFETY: pinned memory was just checked to be there; any other is executed inside the call that gave it, whose caller
                // answers for its `len` bytes.
                unsafe { host::write(*to, &bytes) };
                self.count(ctx, |t| {
                    t.dtoh_copies += 1;
                    t.dtoh_bytes += *len as u64;
                });
                Ok(())
            }
            Op::OnDevice { from, to, len } => {
                let (a, b) = (memory(self, *from), memory(self, *to));
                let (a, b) = (&self.devices[a].device.memory, &self.devices[b].device.memory);
                let done = a.copy(*from, b, *to, *len);
                self.count(ctx, |t| {
                    t.dtod_copies += 1;
                    t.dtod_bytes += *len;
                });
                done.or_else(|e| bad(self, e))
            }
            Op::Fill { to, pattern, count } => {
                let d = memory(self, *to);
                let done = self.devices[d].device.memory.fill(*to, pattern, *count);
                self.count(ctx, |t| t.memsets += 1);
                done.or_else(|e| bad(self, e))
            }
            Op::Free(at) => {
                if self.owned(*at) {
                    self.free(ctx, *at)
                } else {
                    bad(self, Error::Memory(format!("free of {at:#x}, which is no live allocation")))
                }
            }
            Op::Record { event, stamp } => {
                if let Some(e) = self.events.get_mut(event)
                    && e.stamp == *stamp
                {
                    e.done = Some(Instant::now());
                }
                Ok(())
            }
            Op::Call { function, data } => {
                super::call_host(*function, *data);
                Ok(())
            }
            Op::Graph(ops) => {
                for op in ops.iter() {
                    match op {
                        Op::Kernel(_) => self.count(ctx, |t| t.graph_kernel_nodes += 1),
                        _ => self.count(ctx, |t| t.graph_other_nodes += 1),
                    }
                    self.execute(ctx, op)?;
                }
                Ok(())
            }
        }
    }

    fn kernel(&mut self, ctx: Id, k: &KernelOp) -> R<()> {
        let device = self.contexts.get(&ctx).map_or(0, |c| c.device);
        let Some(kernel) = k.module.at(k.index) else { return Err(Code::INVALID_HANDLE) };
        if self.options.fail_launch > 0 {
            self.options.fail_launch -= 1;
            if self.options.fail_launch == 0 {
                let text = format!("kernel `{}`: this launch was set to fail", kernel.name);
                return Err(self.broke(ctx, Code::LAUNCH_FAILED, "Planted", text));
            }
        }
        let how = How {
            max_shared: k.max_shared,
            cooperative: k.cooperative,
            detail: self.options.detail != 0,
            races: self.options.races != 0,
        };
        match self.devices[device].device.run(&k.module, kernel, k.shape, &k.params, how) {
            Ok(stats) => {
                if let Some(c) = self.counts(ctx) {
                    c.kernels.entry(kernel.name.clone()).or_default().add(&stats.counters);
                }
                Ok(())
            }
            Err(Error::Fault(f)) => {
                Err(self.broke(ctx, code_of(&f), &format!("{:?}", f.kind), f.to_string()))
            }
            Err(e) => Err(self.broke(ctx, Code::LAUNCH_FAILED, "Launch", e.to_string())),
        }
    }

    // Events.

    /// A new event.
    pub fn new_event(&mut self, ctx: Id, timing: bool) -> Id {
        let id = self.id();
        self.events.insert(id, Event { ctx, timing, last: None, stamp: 0, done: None, captured: None });
        id
    }

    fn event(&self, event: Id) -> R<&Event> {
        match self.events.get(&event) {
            Some(e) => self.usable(e.ctx).map(|_| e),
            None => self
                .refuse(Code::INVALID_HANDLE, format!("{event:#x} is no event, or one that was destroyed")),
        }
    }

    /// Destroys an event.
    pub fn end_event(&mut self, event: Id) -> R<()> {
        self.event(event)?;
        self.events.remove(&event);
        Ok(())
    }

    /// Records an event on a stream.
    pub fn record(&mut self, event: Id, stream: Id) -> R<()> {
        let ctx = self.event(event)?.ctx;
        let Some(s) = self.streams.get(&stream) else { return Err(Code::INVALID_HANDLE) };
        if s.ctx != ctx {
            return self.refuse(Code::INVALID_HANDLE, "an event is recorded on a stream of another context");
        }
        self.count(ctx, |t| t.event_records += 1);
        if let Some(capture) = self.streams.get(&stream).and_then(|s| s.capture.clone()) {
            self.valid(capture.0)?;
            if let Some(e) = self.events.get_mut(&event) {
                e.captured = Some(capture);
            }
            return Ok(());
        }
        self.seq += 1;
        let stamp = self.seq;
        let seq = self.enqueue(stream, Op::Record { event, stamp })?;
        if let Some(e) = self.events.get_mut(&event) {
            (e.last, e.stamp, e.done, e.captured) = (Some((stream, seq)), stamp, None, None);
        }
        Ok(())
    }

    /// A stream waits for the last record of an event.
    pub fn wait_event(&mut self, stream: Id, event: Id) -> R<()> {
        let e = self.event(event)?;
        let (last, captured) = (e.last, e.captured.clone());
        let ctx = self.streams.get(&stream).map_or(0, |s| s.ctx);
        self.count(ctx, |t| t.event_waits += 1);
        let mine = self.streams.get(&stream).and_then(|s| s.capture.clone());
        match (captured, mine) {
            (Some((theirs, _)), _) if !self.captures.contains_key(&theirs) => {
                self.refuse(Code::CAPTURED_EVENT, "a wait for an event of a capture that has ended")
            }
            (Some((theirs, _)), Some((mine, _))) if theirs != mine => {
                self.invalidate(theirs);
                self.invalidate(mine);
                self.refuse(Code::STREAM_CAPTURE_MERGE, "a wait would merge two captures")
            }
            (Some((theirs, deps)), _) => {
                self.valid(theirs)?;
                if self.legacy(stream) {
                    self.invalidate(theirs);
                    return self
                        .refuse(Code::STREAM_CAPTURE_IMPLICIT, "the legacy stream cannot join a capture");
                }
                let Some(s) = self.streams.get_mut(&stream) else { return Err(Code::INVALID_HANDLE) };
                let (_, have) = s.capture.get_or_insert((theirs, Vec::new()));
                for d in deps {
                    if !have.contains(&d) {
                        have.push(d);
                    }
                }
                if let Some(c) = self.captures.get_mut(&theirs)
                    && !c.streams.contains(&stream)
                {
                    c.streams.push(stream);
                }
                Ok(())
            }
            (None, Some((mine, _))) if last.is_some() => {
                self.invalidate(mine);
                self.refuse(
                    Code::STREAM_CAPTURE_ISOLATION,
                    "a capturing stream waits for an event recorded outside the capture",
                )
            }
            (None, Some(_)) => Ok(()),
            (None, None) => match last {
                Some(last) => self.enqueue_after(stream, Op::Nothing, Some(last)).map(|_| ()),
                None => Ok(()),
            },
        }
    }

    /// Whether an event has happened; if not, its stream gets one piece further.
    pub fn query_event(&mut self, event: Id) -> R<()> {
        self.unsafe_call("cuEventQuery")?;
        let e = self.event(event)?;
        if e.captured.is_some() {
            return self.refuse(Code::CAPTURED_EVENT, "a query of an event that was recorded in a capture");
        }
        match e.last {
            Some((stream, seq)) if self.waits(stream, seq) => {
                self.nudge(stream, seq)?;
                Err(Code::NOT_READY)
            }
            _ => Ok(()),
        }
    }

    /// The host waits for an event.
    pub fn sync_event(&mut self, event: Id) -> R<()> {
        self.unsafe_call("cuEventSynchronize")?;
        let e = self.event(event)?;
        let ctx = e.ctx;
        if e.captured.is_some() {
            return self.refuse(Code::CAPTURED_EVENT, "a wait for an event that was recorded in a capture");
        }
        if let Some((stream, seq)) = e.last {
            self.run(stream, seq)?;
        }
        self.count(ctx, |t| t.synchronisations += 1);
        Ok(())
    }

    /// Milliseconds between two events.
    pub fn elapsed(&self, a: Id, b: Id) -> R<f32> {
        let (a, b) = (self.event(a)?, self.event(b)?);
        if a.captured.is_some() || b.captured.is_some() {
            return Err(Code::CAPTURED_EVENT);
        }
        if !a.timing || !b.timing || a.last.is_none() || b.last.is_none() {
            return self.refuse(
                Code::INVALID_HANDLE,
                "the time between events that were not recorded, or without timing",
            );
        }
        match (a.done, b.done) {
            (Some(a), Some(b)) => Ok(b.saturating_duration_since(a).as_secs_f32() * 1000.0),
            _ => Err(Code::NOT_READY),
        }
    }

    // Capture.

    /// A call that CUDA does not allow while a capture goes on, of any thread in global mode, of this one in thread-local mode.
    pub fn unsafe_call(&mut self, name: &str) -> R<()> {
        let caught: Vec<u64> = self
            .captures
            .iter()
            .filter(|(_, c)| c.mode == Mode::Global || c.mode == Mode::ThreadLocal && c.thread == me())
            .map(|(id, _)| *id)
            .collect();
        if caught.is_empty() {
            return Ok(());
        }
        caught.into_iter().for_each(|c| self.invalidate(c));
        self.refuse(
            Code::STREAM_CAPTURE_UNSUPPORTED,
            format!("{name} is not allowed while a stream captures"),
        )
    }

    /// The host waits for a stream.
    pub fn sync_stream(&mut self, stream: Id) -> R<()> {
        if let Some((c, _)) = self.streams.get(&stream).and_then(|s| s.capture.clone()) {
            self.invalidate(c);
            return self.refuse(Code::STREAM_CAPTURE_UNSUPPORTED, "a wait for a stream that captures");
        }
        self.unsafe_call("cuStreamSynchronize")?;
        let ctx = self.streams.get(&stream).map_or(0, |s| s.ctx);
        if self.legacy(stream) {
            // What the legacy stream's next piece would wait for.
            let seq = self.enqueue(stream, Op::Nothing)?;
            self.run(stream, seq)?;
        } else {
            self.run_stream(stream)?;
        }
        self.count(ctx, |t| t.synchronisations += 1);
        Ok(())
    }

    /// The host waits for a context.
    pub fn sync_context(&mut self, ctx: Id) -> R<()> {
        let caught: Vec<u64> =
            self.captures.iter().filter(|(_, c)| c.ctx == ctx).map(|(id, _)| *id).collect();
        if !caught.is_empty() {
            caught.into_iter().for_each(|c| self.invalidate(c));
            return self
                .refuse(Code::STREAM_CAPTURE_UNSUPPORTED, "a wait for the context while a stream captures");
        }
        self.run_context(ctx)?;
        self.count(ctx, |t| t.synchronisations += 1);
        Ok(())
    }

    fn invalidate(&mut self, capture: u64) {
        if let Some(c) = self.captures.get_mut(&capture) {
            c.invalid = true;
        }
    }

    fn valid(&self, capture: u64) -> R<()> {
        match self.captures.get(&capture) {
            Some(c) if !c.invalid => Ok(()),
            _ => Err(Code::STREAM_CAPTURE_INVALIDATED),
        }
    }

    fn capture_node(&mut self, stream: Id, capture: u64, deps: Vec<usize>, op: Op) -> R<()> {
        self.valid(capture)?;
        let why = match &op {
            Op::ToDevice { from: Source::Bytes(_), .. } | Op::ToHost { pinned: false, .. } => {
                Some("a copy from or to memory that is not pinned: a replay would use it after the call")
            }
            Op::Free(_) => {
                self.invalidate(capture);
                return self.refuse(
                    Code::INVALID_VALUE,
                    "a free of memory that the graph did not allocate, while the stream captures",
                );
            }
            _ => None,
        };
        if let Some(why) = why {
            self.invalidate(capture);
            return self.refuse(Code::STREAM_CAPTURE_UNSUPPORTED, format!("captured: {why}"));
        }
        let id = self.id();
        let Some(c) = self.captures.get_mut(&capture) else { return Err(Code::STREAM_CAPTURE_INVALIDATED) };
        c.nodes.push(Node { id, op, deps });
        let at = c.nodes.len() - 1;
        if let Some(s) = self.streams.get_mut(&stream) {
            s.capture = Some((capture, vec![at]));
        }
        Ok(())
    }

    /// A stream's capture, and whether it is still valid.
    pub fn capturing(&self, stream: Id) -> Option<(u64, bool)> {
        let (c, _) = self.streams.get(&stream)?.capture.as_ref()?;
        Some((*c, self.captures.get(c).is_some_and(|c| !c.invalid)))
    }

    /// Begins a capture.
    pub fn begin(&mut self, stream: Id, mode: Mode) -> R<()> {
        if self.legacy(stream) {
            return self.refuse(Code::STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot capture");
        }
        if self.capturing(stream).is_some() {
            return self.refuse(Code::ILLEGAL_STATE, "the stream captures already");
        }
        let id = self.id();
        let Some(s) = self.streams.get_mut(&stream) else { return Err(Code::INVALID_HANDLE) };
        s.capture = Some((id, Vec::new()));
        let ctx = s.ctx;
        self.captures.insert(
            id,
            Capture {
                ctx,
                origin: stream,
                mode,
                thread: me(),
                nodes: Vec::new(),
                streams: vec![stream],
                invalid: false,
            },
        );
        Ok(())
    }

    fn end_capture(&mut self, capture: u64) -> Option<Capture> {
        let c = self.captures.remove(&capture)?;
        for s in &c.streams {
            if let Some(s) = self.streams.get_mut(s) {
                s.capture = None;
            }
        }
        Some(c)
    }

    /// Ends a capture: a graph, or why there is none.
    pub fn end(&mut self, stream: Id) -> R<Id> {
        let Some((id, ends)) = self.streams.get(&stream).and_then(|s| s.capture.clone()) else {
            return self.refuse(Code::ILLEGAL_STATE, "the stream does not capture");
        };
        let Some(c) = self.captures.get(&id) else { return Err(Code::STREAM_CAPTURE_INVALIDATED) };
        if c.origin != stream {
            self.invalidate(id);
            return self.refuse(Code::STREAM_CAPTURE_UNMATCHED, "the capture began on another stream");
        }
        if c.mode != Mode::Relaxed && c.thread != me() {
            return self.refuse(Code::STREAM_CAPTURE_WRONG_THREAD, "the capture began in another thread");
        }
        let Some(c) = self.end_capture(id) else { return Err(Code::STREAM_CAPTURE_INVALIDATED) };
        if c.invalid {
            return self
                .refuse(Code::STREAM_CAPTURE_INVALIDATED, "the capture was invalidated by a call before");
        }
        let mut joined = vec![false; c.nodes.len()];
        let mut todo = ends;
        while let Some(n) = todo.pop() {
            if !std::mem::replace(&mut joined[n], true) {
                todo.extend(&c.nodes[n].deps);
            }
        }
        if joined.contains(&false) {
            return self.refuse(
                Code::STREAM_CAPTURE_UNJOINED,
                "work of another stream of the capture was not joined to it",
            );
        }
        let graph = self.id();
        self.graphs.insert(graph, Graph { ctx: c.ctx, nodes: c.nodes });
        Ok(graph)
    }

    // Graphs.

    /// An executable graph. Its order respects dependencies and nothing else: a node runs as late as it may.
    pub fn instantiate(&mut self, graph: Id) -> R<Id> {
        let Some(g) = self.graphs.get(&graph).cloned() else { return Err(Code::INVALID_HANDLE) };
        self.usable(g.ctx)?;
        let (mut order, mut seen) = (Vec::new(), vec![false; g.nodes.len()]);
        for last in (0..g.nodes.len()).rev() {
            let mut stack = vec![(last, 0)];
            while let Some((n, next)) = stack.pop() {
                if next == 0 && std::mem::replace(&mut seen[n], true) {
                    continue;
                }
                match g.nodes[n].deps.get(next) {
                    Some(d) => {
                        stack.push((n, next + 1));
                        stack.push((*d, 0));
                    }
                    None => order.push(n),
                }
            }
        }
        let ops = Arc::new(order.iter().map(|n| g.nodes[*n].op.clone()).collect());
        let id = self.id();
        self.execs.insert(id, Exec { graph: g, ops, order });
        Ok(id)
    }

    /// Launches an executable graph on a stream.
    pub fn launch_graph(&mut self, exec: Id, stream: Id) -> R<()> {
        let Some(e) = self.execs.get(&exec) else {
            return self.refuse(Code::INVALID_HANDLE, format!("{exec:#x} is no executable graph"));
        };
        let (ctx, ops) = (e.graph.ctx, Arc::clone(&e.ops));
        if self.capturing(stream).is_some() {
            return self.refuse(Code::NOT_SUPPORTED, "a graph launched into a capture");
        }
        self.enqueue(stream, Op::Graph(ops))?;
        self.count(ctx, |t| t.graph_launches += 1);
        Ok(())
    }

    /// Destroys an executable graph.
    pub fn end_exec(&mut self, exec: Id) -> R<()> {
        self.execs.remove(&exec).map(|_| ()).ok_or(Code::INVALID_HANDLE)
    }

    /// Whether it is an executable graph.
    pub fn is_exec(&self, exec: Id) -> bool {
        self.execs.contains_key(&exec)
    }

    /// The node of this handle.
    pub fn node(&self, node: Id) -> R<&Node> {
        self.graphs.values().flat_map(|g| &g.nodes).find(|n| n.id == node).ok_or(Code::INVALID_HANDLE)
    }

    /// Changes a kernel node of an executable graph.
    pub fn set_node(&mut self, exec: Id, node: Id, op: KernelOp) -> R<()> {
        let Some(e) = self.execs.get_mut(&exec) else { return Err(Code::INVALID_HANDLE) };
        let Some(at) = e.graph.nodes.iter().position(|n| n.id == node) else {
            return Err(Code::INVALID_HANDLE);
        };
        if !matches!(e.graph.nodes[at].op, Op::Kernel(_)) {
            return Err(Code::INVALID_VALUE);
        }
        e.graph.nodes[at].op = Op::Kernel(Box::new(op));
        let nodes = &e.graph.nodes;
        e.ops = Arc::new(e.order.iter().map(|n| nodes[*n].op.clone()).collect());
        Ok(())
    }

    // Modules.

    /// Loads PTX. The second part of an error is what the log says.
    pub fn load(&mut self, ctx: Id, source: &str) -> Result<Id, (Code, String)> {
        let replaced = self.options.replace.as_ref().and_then(|folder| replacement(folder, source));
        let source = replaced.as_deref().unwrap_or(source);
        let directive = |name: &str| {
            let line = source.lines().map(str::trim).find_map(|l| l.strip_prefix(name))?;
            Some(line.trim().to_string())
        };
        let number = |s: String| {
            let (a, b) = s.split_once('.')?;
            Some(a.parse::<u64>().ok()? * 10 + b.parse::<u64>().ok()?)
        };
        let Some(version) = directive(".version").and_then(number) else {
            return Err((Code::INVALID_PTX, "line 1: the PTX has no `.version` that can be read".into()));
        };
        let known = self.options.ptx();
        if version > known {
            let why = format!(
                "PTX version {}.{}, where this driver knows up to {}.{}",
                version / 10,
                version % 10,
                known / 10,
                known % 10
            );
            return Err((Code::UNSUPPORTED_PTX_VERSION, why));
        }
        let target = directive(".target").unwrap_or_default();
        let name = target.split(',').next().unwrap_or("").trim().to_string();
        let digits = name.trim_start_matches("sm_");
        let own = digits.ends_with(['a', 'f']);
        let target = digits.trim_end_matches(['a', 'f']).parse::<u64>().unwrap_or(0);
        let cc = self.options.compute_capability;
        if target == 0 || target > cc || own && target != cc {
            let why =
                format!("`.target {name}`, where the device has compute capability {}.{}", cc / 10, cc % 10);
            return Err((Code::INVALID_PTX, why));
        }
        let device = self.contexts.get(&ctx).map_or(0, |c| c.device);
        match self.devices[device].device.load_module(source) {
            Ok(module) => {
                let id = self.id();
                self.modules.insert(id, Loaded { ctx, module: Arc::new(module), ptx: version, target });
                Ok(id)
            }
            Err(e @ Error::Memory(_)) => Err((Code::OUT_OF_MEMORY, e.to_string())),
            Err(e) => Err((Code::INVALID_PTX, e.to_string())),
        }
    }

    /// Unloads a module, when the context's work is done.
    pub fn unload(&mut self, module: Id) -> R<()> {
        let Some(m) = self.modules.get(&module) else {
            return self
                .refuse(Code::INVALID_HANDLE, format!("{module:#x} is no module, or one that was unloaded"));
        };
        let ctx = self.usable(m.ctx)?;
        self.run_context(ctx)?;
        let device = self.contexts.get(&ctx).map_or(0, |c| c.device);
        if let Some(m) = self.modules.remove(&module) {
            let _ = self.devices[device].device.unload(&m.module);
        }
        self.functions.retain(|_, f| f.module != module);
        Ok(())
    }

    /// A function of a module: the same handle each time.
    pub fn get_function(&mut self, module: Id, name: &str) -> R<Id> {
        let Some(m) = self.modules.get(&module) else { return Err(Code::INVALID_HANDLE) };
        let ctx = self.usable(m.ctx)?;
        let Some(index) = m.module.index(name) else {
            return self.refuse(Code::NOT_FOUND, format!("no kernel `{name}` in the module"));
        };
        if let Some((id, _)) = self.functions.iter().find(|(_, f)| f.module == module && f.index == index) {
            return Ok(*id);
        }
        let id = self.id();
        self.functions.insert(id, Function { module, ctx, index, max_dynamic: 0 });
        Ok(id)
    }

    /// A variable of a module.
    pub fn get_global(&self, module: Id, name: &str) -> R<(u64, u64)> {
        let Some(m) = self.modules.get(&module) else { return Err(Code::INVALID_HANDLE) };
        self.usable(m.ctx)?;
        m.module.global(name).ok_or(Code::NOT_FOUND)
    }

    /// A function with its module, and the versions of that.
    pub fn function(&self, function: Id) -> R<(Function, Arc<Module>, u64, u64)> {
        let Some(f) = self.functions.get(&function) else {
            return self
                .refuse(Code::INVALID_HANDLE, format!("{function:#x} is no function of a loaded module"));
        };
        self.usable(f.ctx)?;
        let m = self.modules.get(&f.module).ok_or(Code::INVALID_HANDLE)?;
        Ok((f.clone(), Arc::clone(&m.module), m.ptx, m.target))
    }

    /// Shared memory that a block of this function may have.
    pub fn shared_limit(&self, f: &Function, static_shared: u32) -> u32 {
        let opted = static_shared.saturating_add(f.max_dynamic);
        opted.max(DEFAULT_SHARED).min(self.options.shared().0.max(DEFAULT_SHARED))
    }

    /// Blocks of a function that fit on a multiprocessor.
    pub fn occupancy(&self, function: Id, threads: u32, dynamic: u64) -> R<u32> {
        let (f, m, ..) = self.function(function)?;
        let k = m.at(f.index).ok_or(Code::INVALID_HANDLE)?;
        let (max_threads, max_blocks) = self.options.resident();
        let (_, sm) = self.options.shared();
        let shared = u64::from(k.shared_static) + dynamic;
        if threads == 0
            || threads > k.max_threads
            || shared > u64::from(self.shared_limit(&f, k.shared_static))
        {
            return Ok(0);
        }
        let reserved = if self.options.compute_capability >= 80 { 1024 } else { 0 };
        let by_threads = max_threads / (threads.div_ceil(32) * 32);
        let by_shared = u64::from(sm).checked_div(shared + reserved).map_or(max_blocks, |n| n as u32);
        Ok(by_threads.min(by_shared).min(max_blocks))
    }

    /// Launches a kernel on a stream.
    pub fn launch(&mut self, op: KernelOp, stream: Id) -> R<()> {
        let (f, ..) = self.function(op.function)?;
        if self.streams.get(&stream).is_some_and(|s| s.ctx != f.ctx) {
            return self
                .refuse(Code::INVALID_HANDLE, "the stream and the function are of different contexts");
        }
        let captures = self.capturing(stream).is_some();
        self.enqueue(stream, Op::Kernel(Box::new(op)))?;
        if !captures {
            self.count(f.ctx, |t| t.direct_launches += 1);
        }
        Ok(())
    }

    /// A launch as a piece of work, everything that can be checked before checked.
    pub fn kernel_op(
        &self,
        function: Id,
        shape: Shape,
        cooperative: bool,
        args: impl FnOnce(&crate::ptx::ir::Kernel) -> R<Vec<u8>>,
    ) -> R<KernelOp> {
        let (f, module, ..) = self.function(function)?;
        let k = module.at(f.index).ok_or(Code::INVALID_HANDLE)?;
        let max_shared = self.shared_limit(&f, k.shared_static);
        if let Err(e) = check(k, shape, max_shared) {
            return self.refuse(Code::INVALID_VALUE, e);
        }
        if cooperative {
            let fit =
                self.occupancy(function, shape.block.iter().product(), u64::from(shape.dynamic_shared))?;
            let all = u64::from(fit) * self.options.multiprocessors;
            let blocks: u64 = shape.grid.iter().map(|g| u64::from(*g)).product();
            if blocks > all {
                return self.refuse(
                    Code::COOPERATIVE_LAUNCH_TOO_LARGE,
                    format!("{blocks} blocks launched together, {all} fit on the device"),
                );
            }
        }
        let params = args(k)?;
        Ok(KernelOp { index: f.index, function, shape, params, cooperative, max_shared, module })
    }
}

impl Stream {
    fn new(ctx: Id, nonblocking: bool, priority: i32) -> Stream {
        Stream { ctx, nonblocking, priority, destroyed: false, queue: VecDeque::new(), capture: None }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// The code that CUDA gives for a mistake of a kernel.
fn code_of(f: &Fault) -> Code {
    match f.kind {
        FaultKind::OutOfBounds | FaultKind::UseAfterFree | FaultKind::ReadOnly => Code::ILLEGAL_ADDRESS,
        FaultKind::Misaligned => Code::MISALIGNED_ADDRESS,
        FaultKind::Budget => Code::LAUNCH_TIMEOUT,
        _ => Code::LAUNCH_FAILED,
    }
}

/// The `.ptx` file of the folder that has the same kernels as `source`.
fn replacement(folder: &str, source: &str) -> Option<String> {
    let kernels = |text: &str| {
        let mut all: Vec<String> =
            text.lines().filter_map(|l| l.split_once(".entry ")).map(|(_, n)| n.trim().to_string()).collect();
        all.sort();
        all
    };
    let wanted = kernels(source);
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let texts = files.filter(|path| path.extension().is_some_and(|e| e == "ptx"));
    texts.filter_map(|path| std::fs::read_to_string(path).ok()).find(|text| kernels(text) == wanted)
}
