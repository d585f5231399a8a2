//! The functions of the driver API. Handles are numbers that name nothing in memory; each call checks those it is given.
#![allow(non_snake_case, missing_docs, clippy::too_many_arguments)]

use std::cell::RefCell;
use std::ffi::c_char;
use std::sync::{Arc, Once};

use super::codes::{Code, R, describe};
use super::host::{self, In, Out};
use super::state::{Id, KernelOp, Mode, Op, Source, State};
use super::{call, control};
use crate::device::Shape;
use crate::ptx::ir::Kernel;

thread_local! {
    /// The contexts of this thread, the current one last.
    static CURRENT: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

/// The calling thread's context, 0 for none.
pub fn current() -> Id {
    CURRENT.with_borrow(|c| c.last().copied().unwrap_or(0))
}

fn set_current(ctx: Id) {
    CURRENT.with_borrow_mut(|c| {
        c.pop();
        if ctx != 0 {
            c.push(ctx);
        }
    });
}

/// The calling thread's context, which must be there and whole.
fn ctx(s: &State) -> R<Id> {
    ready(s)?;
    match current() {
        0 => s.refuse(Code::INVALID_CONTEXT, "the thread has no context"),
        c => s.usable(c),
    }
}

fn ready(s: &State) -> R<()> {
    if s.ready { Ok(()) } else { Err(Code::NOT_INITIALIZED) }
}

fn device(s: &State, dev: i32) -> R<usize> {
    ready(s)?;
    usize::try_from(dev).ok().filter(|d| *d < s.devices.len()).ok_or(Code::INVALID_DEVICE)
}

macro_rules! api {
    ($(fn $name:ident($s:ident $(, $a:ident: $t:ty)*) $body:block)*) => {
        $(#[unsafe(no_mangle)]
        pub extern "C" fn $name($($a: $t),*) -> u32 {
            call(stringify!($name), |$s| $body)
        })*

        /// The address of an exported function.
        fn address(name: &str) -> Option<usize> {
            match name {
                $(stringify!($name) => Some($name as fn_ptr!($($t),*) as usize),)*
                _ => None,
            }
        }
    };
}
macro_rules! fn_ptr {
    ($($t:ty),*) => { extern "C" fn($($t),*) -> u32 };
}

type Text = In<c_char>;

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: u64,
    attributes: *const LaunchAttribute,
    count: u32,
}

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

/// `CUDA_KERNEL_NODE_PARAMS`, version 1; version 2 has two more fields behind.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelNode {
    function: Id,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: usize,
    extra: usize,
}

/// The argument block of a launch, from the array of pointers or from `extra`.
fn arguments(s: &State, k: &Kernel, params: usize, extra: usize) -> R<Vec<u8>> {
    let refuse = |why: String| s.refuse(Code::INVALID_VALUE, format!("kernel `{}`: {why}", k.name));
    if extra == 0 {
        let layout: Vec<(u32, u32)> = k.params.iter().map(|p| (p.offset, p.size)).collect();
        return host::arguments(params, &layout, k.param_bytes, s.options.arguments_end).or_else(refuse);
    }
    if params != 0 {
        return refuse("both an array of arguments and `extra` were given".into());
    }
    let word = |at: usize| {
        let mut raw = [0; 8];
        host::probe(at, &mut raw).map(|()| u64::from_le_bytes(raw)).ok_or(Code::INVALID_VALUE)
    };
    let (mut buffer, mut size, mut at) = (0, None, extra);
    loop {
        match word(at)? {
            0 => break,
            1 => buffer = word(at + 8)?,
            2 => size = Some(word(word(at + 8)? as usize)?),
            other => return refuse(format!("`extra` has the key {other}")),
        }
        at += 16;
    }
    let Some(size) = size else { return refuse("`extra` has no size".into()) };
    // The buffer may end in padding, up to the alignment of its largest member.
    let most = u64::from(k.param_bytes).next_multiple_of(8);
    if size < u64::from(k.param_bytes) || size > most {
        return refuse(format!("takes {} bytes of arguments, {size} were given", k.param_bytes));
    }
    let mut block = vec![0; k.param_bytes as usize];
    match host::probe(buffer as usize, &mut block) {
        Some(()) => Ok(block),
        None => refuse(format!("the arguments cannot be read at {buffer:#x}")),
    }
}

fn launch(
    s: &mut State,
    f: Id,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: u64,
    params: usize,
    extra: usize,
    cooperative: bool,
) -> R<()> {
    let ctx = ctx(s)?;
    let stream = s.stream(ctx, stream)?;
    let op = kernel_op(s, f, Shape { grid, block, dynamic_shared }, params, extra, cooperative)?;
    s.launch(op, stream)
}

fn kernel_op(s: &State, f: Id, shape: Shape, params: usize, extra: usize, cooperative: bool) -> R<KernelOp> {
    s.kernel_op(f, shape, cooperative, |k| arguments(s, k, params, extra))
}

/// A copy to the device; `wait` holds the caller until it is done.
fn to_device(s: &mut State, to: u64, from: usize, len: usize, stream: Option<u64>) -> R<()> {
    let ctx = ctx(s)?;
    let id = s.stream(ctx, stream.unwrap_or(0))?;
    if stream.is_none() {
        s.unsafe_call("cuMemcpyHtoD")?;
    }
    if len == 0 {
        return Ok(());
    }
    s.range(to, len as u64)?;
    let from = if stream.is_some() && s.pinned(from, len) {
        Source::Pinned(from, len)
    } else {
        if from == 0 {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the driver API's contract: the source can be read for the call.
        Source::Bytes(Arc::new(unsafe { host::read(from, len) }))
    };
    let seq = s.enqueue(id, Op::ToDevice { to, from })?;
    if stream.is_none() {
        s.run(id, seq)?;
        s.count(ctx, |t| t.blocking_copies += 1);
    }
    Ok(())
}

fn to_host(s: &mut State, to: usize, from: u64, len: usize, stream: Option<u64>) -> R<()> {
    let ctx = ctx(s)?;
    let id = s.stream(ctx, stream.unwrap_or(0))?;
    if stream.is_none() {
        s.unsafe_call("cuMemcpyDtoH")?;
    }
    if len == 0 {
        return Ok(());
    }
    if to == 0 {
        return Err(Code::INVALID_VALUE);
    }
    s.range(from, len as u64)?;
    let pinned = stream.is_some() && s.pinned(to, len);
    let seq = s.enqueue(id, Op::ToHost { from, to, len, pinned })?;
    if !pinned {
        s.run(id, seq)?;
        s.count(ctx, |t| t.blocking_copies += 1);
    }
    Ok(())
}

fn on_device(s: &mut State, to: u64, from: u64, len: usize, stream: u64) -> R<()> {
    let ctx = ctx(s)?;
    let id = s.stream(ctx, stream)?;
    if len == 0 {
        return Ok(());
    }
    s.range(from, len as u64)?;
    s.range(to, len as u64)?;
    s.enqueue(id, Op::OnDevice { from, to, len: len as u64 }).map(|_| ())
}

fn fill(s: &mut State, to: u64, pattern: &[u8], count: usize, stream: u64) -> R<()> {
    let ctx = ctx(s)?;
    let id = s.stream(ctx, stream)?;
    if count == 0 {
        return Ok(());
    }
    if !to.is_multiple_of(pattern.len() as u64) {
        return s.refuse(Code::INVALID_VALUE, "a fill of an address that is no multiple of the value's size");
    }
    let bytes = count.checked_mul(pattern.len()).ok_or(Code::INVALID_VALUE)?;
    s.range(to, bytes as u64)?;
    s.enqueue(id, Op::Fill { to, pattern: pattern.to_vec(), count: count as u64 }).map(|_| ())
}

fn image(s: &mut State, module: &Out<Id>, image: &Text) -> Result<(), (Code, String)> {
    let plain = |c: Code| (c, String::new());
    let ctx = ctx(s).map_err(plain)?;
    s.unsafe_call("cuModuleLoadData").map_err(plain)?;
    match image.magic() {
        [0x7f, b'E', b'L', b'F'] | [0x50, 0xed, 0x55, 0xba] => {
            return Err((Code::NO_BINARY_FOR_GPU, "a cubin or fatbin: this device runs only PTX".into()));
        }
        _ => {}
    }
    let source = image.text().map_err(|_| (Code::INVALID_IMAGE, "the image is no text".to_string()))?;
    let id = s.load(ctx, source)?;
    module.set(id).map_err(plain)
}

fn told(s: &State, done: Result<(), (Code, String)>) -> R<()> {
    match done {
        Ok(()) => Ok(()),
        Err((code, why)) if why.is_empty() => Err(code),
        Err((code, why)) => s.refuse(code, format!("module refused: {why}")),
    }
}

fn attribute(s: &State, attribute: u32) -> R<i32> {
    let (block, sm) = s.options.shared();
    let (threads, blocks) = s.options.resident();
    let cc = s.options.compute_capability as i32;
    Ok(match attribute {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => 48 * 1024,
        9 => 65536,
        10 => 32,
        11 => i32::MAX,
        12 | 82 => 65536,
        13 => 1_500_000,
        14 => 512,
        15 => 1,
        16 => s.options.multiprocessors as i32,
        17 | 18 | 20 | 32..=35 => 0,
        19 => 1,
        31 => 1,
        36 => 5_000_000,
        37 => 256,
        38 => 4 << 20,
        39 => threads as i32,
        40 => 2,
        41 => 1,
        75 => cc / 10,
        76 => cc % 10,
        78..=80 => 1,
        81 => sm as i32,
        83..=89 => 0,
        95 => 1,
        96 => 0,
        97 => block as i32,
        99 => 1,
        106 => blocks as i32,
        111 if cc >= 80 => 1024,
        115 => 1,
        0 | 151.. => return Err(Code::INVALID_VALUE),
        _ => 0,
    })
}

fn bytes_of<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(text.bytes()).for_each(|(o, b)| *o = b);
    out
}

fn uuid(s: &State, dev: i32) -> R<[u8; 16]> {
    let mut id = bytes_of::<16>("softcuda-device");
    id[15] = device(s, dev)? as u8;
    Ok(id)
}

fn new_pool(s: &mut State, device: usize) -> Id {
    let id = s.id();
    s.pools.insert(id, (device, [(1, 1), (2, 1), (3, 1), (4, 0)].into()));
    id
}

/// The default pool of a device: the first made for it.
fn pool(s: &mut State, device: usize) -> Id {
    let first = s.pools.iter().filter(|(_, (d, _))| *d == device).map(|(id, _)| *id).min();
    first.unwrap_or_else(|| new_pool(s, device))
}

fn alloc(s: &mut State, out: &Out<u64>, size: usize, stream: u64) -> R<()> {
    let ctx = ctx(s)?;
    let stream = s.stream(ctx, stream)?;
    if s.capturing(stream).is_some() {
        return s.refuse(Code::NOT_SUPPORTED, "an allocation while the stream captures");
    }
    out.set(s.alloc(ctx, size as u64)?)
}

fn pin(s: &mut State, out: &Out<usize>, size: usize, flags: u32) -> R<()> {
    ctx(s)?;
    s.unsafe_call("cuMemHostAlloc")?;
    if size == 0 || out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let at = host::allocate(size).ok_or(Code::OUT_OF_MEMORY)?;
    s.pinned.insert(at, (size, flags, true));
    out.set(at)
}

fn begin(s: &mut State, stream: u64, mode: u32) -> R<()> {
    let ctx = ctx(s)?;
    let stream = s.stream(ctx, stream)?;
    let mode = match mode {
        0 => Mode::Global,
        1 => Mode::ThreadLocal,
        2 => Mode::Relaxed,
        _ => return Err(Code::INVALID_VALUE),
    };
    s.begin(stream, mode)
}

fn status(capturing: Option<(u64, bool)>) -> u32 {
    match capturing {
        None => 0,
        Some((_, true)) => 1,
        Some((_, false)) => 2,
    }
}

fn instantiate(s: &mut State, out: &Out<Id>, graph: Id, flags: u64) -> R<()> {
    ready(s)?;
    // AUTO_FREE_ON_LAUNCH 1, UPLOAD 2, DEVICE_LAUNCH 4, USE_NODE_PRIORITY 8.
    if flags & !15 != 0 || flags & 5 == 5 {
        return Err(Code::INVALID_VALUE);
    }
    if flags & 4 != 0 {
        return s.refuse(Code::NOT_SUPPORTED, "a graph launched from the device");
    }
    let exec = s.instantiate(graph)?;
    out.set(exec)
}

fn node_params(s: &State, node: Id) -> R<KernelNode> {
    match &s.node(node)?.op {
        Op::Kernel(k) => Ok(KernelNode {
            function: k.function,
            grid: k.shape.grid,
            block: k.shape.block,
            shared: k.shape.dynamic_shared,
            params: 0,
            extra: 0,
        }),
        _ => Err(Code::INVALID_VALUE),
    }
}

fn set_node(s: &mut State, exec: Id, node: Id, p: KernelNode) -> R<()> {
    let Op::Kernel(old) = &s.node(node)?.op else { return Err(Code::INVALID_VALUE) };
    let (cooperative, function) = (old.cooperative, if p.function == 0 { old.function } else { p.function });
    let shape = Shape { grid: p.grid, block: p.block, dynamic_shared: p.shared };
    let op = kernel_op(s, function, shape, p.params, p.extra, cooperative)?;
    s.set_node(exec, node, op)
}

fn function_attribute(s: &State, f: Id, attribute: u32) -> R<i32> {
    let (f, m, ptx, target) = s.function(f)?;
    let k = m.at(f.index).ok_or(Code::INVALID_HANDLE)?;
    Ok(match attribute {
        0 => k.max_threads as i32,
        1 => k.shared_static as i32,
        2 => k.param_bytes as i32,
        3 => k.local.iter().map(|(_, size)| *size as i32).sum(),
        // Registers are given out by ptxas, which does not run here: 0 is "not known".
        4 => 0,
        5 => ptx as i32,
        6 => target as i32,
        7 => 0,
        8 => s.shared_limit(&f, k.shared_static).saturating_sub(k.shared_static) as i32,
        9 => -1,
        10..=16 => 0,
        _ => return Err(Code::INVALID_VALUE),
    })
}

fn get_proc(s: &mut State, name: &Text, out: &Out<usize>) -> R<bool> {
    let _ = s;
    let name = name.text()?;
    // The newest version under this name that is here.
    let found =
        ["_v3", "_v2", ""].iter().find_map(|v| address(&format!("{name}{v}"))).or_else(|| address(name));
    out.set(found.unwrap_or(0))?;
    Ok(found.is_some())
}

const MISSING: &str = "is not there in the software driver";

api! {
    fn cuInit(s, flags: u32) {
        static AT_EXIT: Once = Once::new();
        // SAFETY: the function is there as long as the process: a library opened by tests is never closed.
        AT_EXIT.call_once(|| { unsafe { libc::atexit(control::at_exit) }; });
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if s.devices.is_empty() {
            return Err(Code::NO_DEVICE);
        }
        s.ready = true;
        Ok(())
    }
    fn cuDriverGetVersion(s, out: Out<i32>) { out.set(s.options.driver_version as i32) }
    fn cuGetErrorName(_s, code: u32, out: Out<usize>) {
        let text = describe(code).map(|(n, _)| n);
        out.set(text.map_or(0, |t| t.as_ptr().expose_provenance()))?;
        text.map(|_| ()).ok_or(Code::INVALID_VALUE)
    }
    fn cuGetErrorString(_s, code: u32, out: Out<usize>) {
        let text = describe(code).map(|(_, t)| t);
        out.set(text.map_or(0, |t| t.as_ptr().expose_provenance()))?;
        text.map(|_| ()).ok_or(Code::INVALID_VALUE)
    }
    fn cuGetProcAddress(s, name: Text, out: Out<usize>, _version: i32, _flags: u64) {
        if get_proc(s, &name, &out)? { Ok(()) } else { Err(Code::NOT_FOUND) }
    }
    fn cuGetProcAddress_v2(s, name: Text, out: Out<usize>, _version: i32, _flags: u64, status: Out<u32>) {
        let found = get_proc(s, &name, &out)?;
        status.set_if(if found { 0 } else { 1 });
        if found { Ok(()) } else { Err(Code::NOT_FOUND) }
    }

    // Devices.

    fn cuDeviceGetCount(s, out: Out<i32>) {
        ready(s)?;
        out.set(s.devices.len() as i32)
    }
    fn cuDeviceGet(s, out: Out<i32>, ordinal: i32) { out.set(device(s, ordinal)? as i32) }
    fn cuDeviceGetName(s, out: Out<u8>, room: i32, dev: i32) {
        device(s, dev)?;
        let cc = s.options.compute_capability;
        let name = format!("softcuda (software, compute {}.{})\0", cc / 10, cc % 10);
        let room = room.max(0) as usize;
        out.set_all(name.bytes().take(room.saturating_sub(1)).chain([0]), room);
        Ok(())
    }
    fn cuDeviceGetAttribute(s, out: Out<i32>, what: u32, dev: i32) {
        device(s, dev)?;
        out.set(attribute(s, what)?)
    }
    fn cuDeviceGetUuid(s, out: Out<[u8; 16]>, dev: i32) { out.set(uuid(s, dev)?) }
    fn cuDeviceGetUuid_v2(s, out: Out<[u8; 16]>, dev: i32) { out.set(uuid(s, dev)?) }
    fn cuDeviceTotalMem_v2(s, out: Out<usize>, dev: i32) {
        device(s, dev)?;
        out.set(s.options.memory as usize)
    }
    fn cuDeviceGetPCIBusId(s, out: Out<u8>, room: i32, dev: i32) {
        let id = format!("0000:{:02x}:00.0\0", device(s, dev)?);
        out.set_all(id.bytes(), room.max(0) as usize);
        Ok(())
    }
    fn cuDeviceComputeCapability(s, major: Out<i32>, minor: Out<i32>, dev: i32) {
        device(s, dev)?;
        major.set(attribute(s, 75)?)?;
        minor.set(attribute(s, 76)?)
    }
    fn cuDeviceCanAccessPeer(s, out: Out<i32>, a: i32, b: i32) {
        device(s, a)?;
        device(s, b)?;
        out.set(0)
    }

    // Contexts.

    fn cuDevicePrimaryCtxRetain(s, out: Out<Id>, dev: i32) {
        let dev = device(s, dev)?;
        let ctx = s.retain(dev);
        out.set(ctx)
    }
    fn cuDevicePrimaryCtxRelease_v2(s, dev: i32) {
        let dev = device(s, dev)?;
        s.release(dev)
    }
    fn cuDevicePrimaryCtxReset_v2(s, dev: i32) {
        let dev = device(s, dev)?;
        while s.primary(dev).is_some() {
            s.release(dev)?;
        }
        Ok(())
    }
    fn cuDevicePrimaryCtxGetState(s, dev: i32, flags: Out<u32>, active: Out<i32>) {
        let state = s.primary(device(s, dev)?);
        flags.set(state.unwrap_or(0))?;
        active.set(i32::from(state.is_some()))
    }
    fn cuDevicePrimaryCtxSetFlags_v2(s, dev: i32, _flags: u32) { device(s, dev).map(|_| ()) }
    fn cuCtxCreate_v2(s, out: Out<Id>, flags: u32, dev: i32) {
        let dev = device(s, dev)?;
        let ctx = s.new_context(dev, flags);
        CURRENT.with_borrow_mut(|c| c.push(ctx));
        out.set(ctx)
    }
    fn cuCtxCreate_v3(s, out: Out<Id>, _affinity: usize, count: i32, flags: u32, dev: i32) {
        let dev = device(s, dev)?;
        if count != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let ctx = s.new_context(dev, flags);
        CURRENT.with_borrow_mut(|c| c.push(ctx));
        out.set(ctx)
    }
    fn cuCtxCreate_v4(s, out: Out<Id>, params: usize, flags: u32, dev: i32) {
        let dev = device(s, dev)?;
        if params != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let ctx = s.new_context(dev, flags);
        CURRENT.with_borrow_mut(|c| c.push(ctx));
        out.set(ctx)
    }
    fn cuCtxDestroy_v2(s, ctx: Id) {
        ready(s)?;
        if !s.contexts.contains_key(&ctx) {
            return Err(Code::INVALID_CONTEXT);
        }
        s.end_context(ctx);
        if current() == ctx {
            CURRENT.with_borrow_mut(|c| c.pop());
        }
        Ok(())
    }
    fn cuCtxSetCurrent(s, ctx: Id) {
        ready(s)?;
        if ctx != 0 && !s.contexts.contains_key(&ctx) {
            return s.refuse(Code::INVALID_CONTEXT, format!("{ctx:#x} is no context, or one that was destroyed"));
        }
        set_current(ctx);
        Ok(())
    }
    fn cuCtxGetCurrent(s, out: Out<Id>) {
        ready(s)?;
        out.set(current())
    }
    fn cuCtxPushCurrent_v2(s, ctx: Id) {
        ready(s)?;
        if !s.contexts.contains_key(&ctx) {
            return Err(Code::INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|c| c.push(ctx));
        Ok(())
    }
    fn cuCtxPopCurrent_v2(s, out: Out<Id>) {
        ready(s)?;
        let ctx = CURRENT.with_borrow_mut(|c| c.pop()).ok_or(Code::INVALID_CONTEXT)?;
        out.set_if(ctx);
        Ok(())
    }
    fn cuCtxGetDevice(s, out: Out<i32>) {
        let ctx = ctx(s)?;
        out.set(s.contexts.get(&ctx).map_or(0, |c| c.device as i32))
    }
    fn cuCtxGetApiVersion(s, _ctx: Id, out: Out<u32>) {
        ready(s)?;
        out.set(3020)
    }
    fn cuCtxGetFlags(s, out: Out<u32>) {
        let ctx = ctx(s)?;
        out.set(s.contexts.get(&ctx).map_or(0, |c| c.flags))
    }
    fn cuCtxSetFlags(s, flags: u32) {
        let ctx = ctx(s)?;
        if let Some(c) = s.contexts.get_mut(&ctx) {
            c.flags = flags;
        }
        Ok(())
    }
    fn cuCtxSynchronize(s) {
        let ctx = ctx(s)?;
        s.sync_context(ctx)
    }
    fn cuCtxGetLimit(s, out: Out<usize>, limit: u32) {
        ctx(s)?;
        match limit {
            0 => out.set(1024),
            1 => out.set(1 << 20),
            2 => out.set(8 << 20),
            _ => Err(Code::UNSUPPORTED_LIMIT),
        }
    }
    fn cuCtxSetLimit(s, limit: u32, _value: usize) {
        ctx(s)?;
        if limit <= 2 { Ok(()) } else { Err(Code::UNSUPPORTED_LIMIT) }
    }
    fn cuCtxGetCacheConfig(s, out: Out<u32>) {
        ctx(s)?;
        out.set(0)
    }
    fn cuCtxSetCacheConfig(s, _config: u32) { ctx(s).map(|_| ()) }
    fn cuCtxGetStreamPriorityRange(s, least: Out<i32>, greatest: Out<i32>) {
        ctx(s)?;
        least.set_if(0);
        greatest.set_if(-5);
        Ok(())
    }
    fn cuProfilerStart(s) { ctx(s).map(|_| ()) }
    fn cuProfilerStop(s) { ctx(s).map(|_| ()) }

    // Memory.

    fn cuMemGetInfo_v2(s, free: Out<usize>, total: Out<usize>) {
        let ctx = ctx(s)?;
        let device = s.contexts.get(&ctx).map_or(0, |c| c.device);
        let (used, limit) = s.devices[device].device.usage();
        free.set_if(limit.saturating_sub(used) as usize);
        total.set_if(limit as usize);
        Ok(())
    }
    fn cuMemAlloc_v2(s, out: Out<u64>, size: usize) {
        let ctx = ctx(s)?;
        s.unsafe_call("cuMemAlloc")?;
        if size == 0 || out.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let at = s.alloc(ctx, size as u64)?;
        out.set(at)
    }
    fn cuMemFree_v2(s, address: u64) {
        let ctx = ctx(s)?;
        s.unsafe_call("cuMemFree")?;
        if address == 0 {
            return Ok(());
        }
        // A free waits for the device.
        s.run_context(ctx)?;
        s.free(ctx, address)
    }
    fn cuMemAllocAsync(s, out: Out<u64>, size: usize, stream: u64) { alloc(s, &out, size, stream) }
    fn cuMemAllocFromPoolAsync(s, out: Out<u64>, size: usize, pool: Id, stream: u64) {
        if !s.pools.contains_key(&pool) {
            return Err(Code::INVALID_HANDLE);
        }
        alloc(s, &out, size, stream)
    }
    fn cuMemFreeAsync(s, address: u64, stream: u64) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        if !s.owned(address) {
            return s.refuse(Code::INVALID_VALUE, format!("free of {address:#x}, which is no live allocation"));
        }
        s.enqueue(stream, Op::Free(address)).map(|_| ())
    }
    fn cuDeviceGetDefaultMemPool(s, out: Out<Id>, dev: i32) {
        let dev = device(s, dev)?;
        let id = pool(s, dev);
        out.set(id)
    }
    fn cuDeviceGetMemPool(s, out: Out<Id>, dev: i32) {
        let dev = device(s, dev)?;
        let id = pool(s, dev);
        out.set(id)
    }
    fn cuDeviceSetMemPool(s, dev: i32, pool: Id) {
        device(s, dev)?;
        if s.pools.contains_key(&pool) { Ok(()) } else { Err(Code::INVALID_HANDLE) }
    }
    fn cuMemPoolCreate(s, out: Out<Id>, _props: usize) {
        ready(s)?;
        let id = new_pool(s, 0);
        out.set(id)
    }
    fn cuMemPoolDestroy(s, pool: Id) { s.pools.remove(&pool).map(|_| ()).ok_or(Code::INVALID_HANDLE) }
    fn cuMemPoolTrimTo(s, pool: Id, _keep: usize) {
        if s.pools.contains_key(&pool) { Ok(()) } else { Err(Code::INVALID_HANDLE) }
    }
    fn cuMemPoolGetAttribute(s, pool: Id, what: u32, out: Out<u64>) {
        let (device, set) = s.pools.get(&pool).ok_or(Code::INVALID_HANDLE)?;
        match what {
            // Three flags are ints.
            1..=3 => out.set_int(set.get(&what).copied().unwrap_or(0) as i32),
            4 => out.set(set.get(&what).copied().unwrap_or(0)),
            5..=8 => out.set(s.devices[*device].device.usage().0),
            _ => Err(Code::INVALID_VALUE),
        }
    }
    fn cuMemPoolSetAttribute(s, pool: Id, what: u32, value: In<u32>) {
        let (_, set) = s.pools.get_mut(&pool).ok_or(Code::INVALID_HANDLE)?;
        let low = u64::from(value.get()?);
        match what {
            1..=3 => set.insert(what, low),
            4 => set.insert(what, low | u64::from(value.nth(1)?) << 32),
            5..=8 => None,
            _ => return Err(Code::INVALID_VALUE),
        };
        Ok(())
    }
    fn cuMemcpyHtoD_v2(s, to: u64, from: usize, len: usize) { to_device(s, to, from, len, None) }
    fn cuMemcpyHtoDAsync_v2(s, to: u64, from: usize, len: usize, stream: u64) { to_device(s, to, from, len, Some(stream)) }
    fn cuMemcpyDtoH_v2(s, to: usize, from: u64, len: usize) { to_host(s, to, from, len, None) }
    fn cuMemcpyDtoHAsync_v2(s, to: usize, from: u64, len: usize, stream: u64) { to_host(s, to, from, len, Some(stream)) }
    fn cuMemcpyDtoD_v2(s, to: u64, from: u64, len: usize) { on_device(s, to, from, len, 0) }
    fn cuMemcpyDtoDAsync_v2(s, to: u64, from: u64, len: usize, stream: u64) { on_device(s, to, from, len, stream) }
    fn cuMemcpyPeerAsync(s, to: u64, _a: Id, from: u64, _b: Id, len: usize, stream: u64) { on_device(s, to, from, len, stream) }
    fn cuMemsetD8_v2(s, to: u64, value: u8, count: usize) { fill(s, to, &[value], count, 0) }
    fn cuMemsetD8Async(s, to: u64, value: u8, count: usize, stream: u64) { fill(s, to, &[value], count, stream) }
    fn cuMemsetD16_v2(s, to: u64, value: u16, count: usize) { fill(s, to, &value.to_le_bytes(), count, 0) }
    fn cuMemsetD16Async(s, to: u64, value: u16, count: usize, stream: u64) { fill(s, to, &value.to_le_bytes(), count, stream) }
    fn cuMemsetD32_v2(s, to: u64, value: u32, count: usize) { fill(s, to, &value.to_le_bytes(), count, 0) }
    fn cuMemsetD32Async(s, to: u64, value: u32, count: usize, stream: u64) { fill(s, to, &value.to_le_bytes(), count, stream) }

    // Memory of the host.

    fn cuMemHostAlloc(s, out: Out<usize>, size: usize, flags: u32) { pin(s, &out, size, flags) }
    fn cuMemAllocHost_v2(s, out: Out<usize>, size: usize) { pin(s, &out, size, 0) }
    fn cuMemFreeHost(s, at: usize) {
        let ctx = ctx(s)?;
        s.unsafe_call("cuMemFreeHost")?;
        let Some((size, _, true)) = s.pinned.get(&at).copied() else {
            return s.refuse(Code::INVALID_VALUE, format!("free of {at:#x}, which is no pinned memory"));
        };
        s.run_context(ctx)?;
        s.pinned.remove(&at);
        // SAFETY: it is among the pinned memory that was allocated here, and is no more; queued copies have run, later ones find it gone.
        unsafe { host::release(at, size) };
        Ok(())
    }
    fn cuMemHostGetFlags(s, out: Out<u32>, at: usize) {
        ctx(s)?;
        let (_, flags, _) = s.pinned.get(&at).ok_or(Code::INVALID_VALUE)?;
        out.set(*flags)
    }
    fn cuMemHostRegister_v2(s, at: usize, size: usize, flags: u32) {
        ctx(s)?;
        s.unsafe_call("cuMemHostRegister")?;
        if size == 0 || at == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let before = s.pinned.range(..at + size).next_back();
        if before.is_some_and(|(b, (len, ..))| b + len > at) {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        s.pinned.insert(at, (size, flags, false));
        Ok(())
    }
    fn cuMemHostUnregister(s, at: usize) {
        let ctx = ctx(s)?;
        s.unsafe_call("cuMemHostUnregister")?;
        let Some((_, _, false)) = s.pinned.get(&at) else { return Err(Code::HOST_MEMORY_NOT_REGISTERED) };
        s.run_context(ctx)?;
        s.pinned.remove(&at);
        Ok(())
    }
    fn cuMemHostGetDevicePointer_v2(s, _out: Out<u64>, _at: usize, _flags: u32) {
        s.refuse(Code::NOT_SUPPORTED, format!("memory of the host as seen from the device {MISSING}"))
    }

    // Streams.

    fn cuStreamCreate(s, out: Out<Id>, flags: u32) {
        let ctx = ctx(s)?;
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let id = s.new_stream(ctx, flags == 1, 0);
        out.set(id)
    }
    fn cuStreamCreateWithPriority(s, out: Out<Id>, flags: u32, priority: i32) {
        let ctx = ctx(s)?;
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let id = s.new_stream(ctx, flags == 1, priority.clamp(-5, 0));
        out.set(id)
    }
    fn cuStreamDestroy_v2(s, stream: u64) {
        let ctx = ctx(s)?;
        if stream <= 2 {
            return Err(Code::INVALID_HANDLE);
        }
        let stream = s.stream(ctx, stream)?;
        s.end_stream(stream)
    }
    fn cuStreamSynchronize(s, stream: u64) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        s.sync_stream(stream)
    }
    fn cuStreamQuery(s, stream: u64) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        s.unsafe_call("cuStreamQuery")?;
        s.query_stream(stream)
    }
    fn cuStreamWaitEvent(s, stream: u64, event: Id, flags: u32) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        if flags != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        s.wait_event(stream, event)
    }
    fn cuStreamGetPriority(s, stream: u64, out: Out<i32>) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        out.set(s.streams.get(&stream).map_or(0, |s| s.priority))
    }
    fn cuStreamGetFlags(s, stream: u64, out: Out<u32>) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        out.set(s.streams.get(&stream).map_or(0, |s| u32::from(s.nonblocking)))
    }
    fn cuStreamGetCtx(s, stream: u64, out: Out<Id>) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        out.set(s.streams.get(&stream).map_or(0, |s| s.ctx))
    }
    fn cuLaunchHostFunc(s, stream: u64, function: usize, data: usize) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        if function == 0 {
            return Err(Code::INVALID_VALUE);
        }
        s.enqueue(stream, Op::Call { function, data }).map(|_| ())
    }
    fn cuStreamBeginCapture_v2(s, stream: u64, mode: u32) { begin(s, stream, mode) }
    fn cuStreamEndCapture(s, stream: u64, out: Out<Id>) {
        out.set_if(0);
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        let graph = s.end(stream)?;
        out.set(graph)
    }
    fn cuStreamIsCapturing(s, stream: u64, out: Out<u32>) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        out.set(status(s.capturing(stream)))
    }
    fn cuStreamGetCaptureInfo_v2(s, stream: u64, state: Out<u32>, id: Out<u64>, graph: Out<Id>, deps: Out<usize>, count: Out<usize>) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        let capturing = s.capturing(stream);
        state.set(status(capturing))?;
        id.set_if(capturing.map_or(0, |(id, _)| id));
        // The graph exists only when the capture ends.
        graph.set_if(0);
        deps.set_if(0);
        count.set_if(0);
        Ok(())
    }
    fn cuThreadExchangeStreamCaptureMode(s, _mode: Out<u32>) {
        s.refuse(Code::NOT_SUPPORTED, format!("cuThreadExchangeStreamCaptureMode {MISSING}"))
    }

    // Events.

    fn cuEventCreate(s, out: Out<Id>, flags: u32) {
        let ctx = ctx(s)?;
        let id = s.new_event(ctx, flags & 2 == 0);
        out.set(id)
    }
    fn cuEventDestroy_v2(s, event: Id) {
        ready(s)?;
        s.end_event(event)
    }
    fn cuEventRecord(s, event: Id, stream: u64) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        s.record(event, stream)
    }
    fn cuEventRecordWithFlags(s, event: Id, stream: u64, flags: u32) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        if flags != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        s.record(event, stream)
    }
    fn cuEventSynchronize(s, event: Id) {
        ready(s)?;
        s.sync_event(event)
    }
    fn cuEventQuery(s, event: Id) {
        ready(s)?;
        s.query_event(event)
    }
    fn cuEventElapsedTime(s, out: Out<f32>, from: Id, to: Id) { out.set(s.elapsed(from, to)?) }
    fn cuEventElapsedTime_v2(s, out: Out<f32>, from: Id, to: Id) { out.set(s.elapsed(from, to)?) }

    // Modules and functions.

    fn cuModuleLoadData(s, module: Out<Id>, data: Text) {
        let done = image(s, &module, &data);
        told(s, done)
    }
    fn cuModuleLoadDataEx(s, module: Out<Id>, data: Text, count: u32, options: In<u32>, values: Out<u64>) {
        let mut logs = [(0u64, 0u64), (0, 0)];
        let mut sizes = [None; 2];
        for i in 0..count as usize {
            let value = values.as_in().nth(i)?;
            match options.nth(i)? {
                3 => logs[0].0 = value,
                4 => (logs[0].1, sizes[0]) = (value & 0xffff_ffff, Some(i)),
                5 => logs[1].0 = value,
                6 => (logs[1].1, sizes[1]) = (value & 0xffff_ffff, Some(i)),
                _ => {}
            }
        }
        let done = image(s, &module, &data);
        let why = done.as_ref().err().map_or("", |(_, why)| why);
        for (text, ((at, room), size)) in ["", why].into_iter().zip(logs.into_iter().zip(sizes)) {
            if at != 0 && room > 0 {
                let n = text.len().min(room as usize - 1);
                let bytes: Vec<u8> = text.bytes().take(n).chain([0]).collect();
                // SAFETY: the caller gives a log of so many bytes, and no more than those are written.
                unsafe { host::write(at as usize, &bytes) };
                if let Some(i) = size {
                    values.set_nth(i, n as u64);
                }
            }
        }
        told(s, done)
    }
    fn cuModuleLoad(s, module: Out<Id>, file: Text) {
        ctx(s)?;
        s.unsafe_call("cuModuleLoad")?;
        let Ok(bytes) = std::fs::read(file.text()?) else { return Err(Code::FILE_NOT_FOUND) };
        if bytes.starts_with(b"\x7fELF") || bytes.starts_with(&[0x50, 0xed, 0x55, 0xba]) {
            return s.refuse(Code::NO_BINARY_FOR_GPU, "a cubin or fatbin: this device runs only PTX");
        }
        let Ok(text) = String::from_utf8(bytes) else { return Err(Code::INVALID_IMAGE) };
        let ctx = ctx(s)?;
        match s.load(ctx, text.trim_end_matches('\0')) {
            Ok(id) => module.set(id),
            Err(e) => told(s, Err(e)),
        }
    }
    fn cuModuleUnload(s, module: Id) {
        ready(s)?;
        s.unsafe_call("cuModuleUnload")?;
        s.unload(module)
    }
    fn cuModuleGetFunction(s, out: Out<Id>, module: Id, name: Text) {
        ready(s)?;
        let f = s.get_function(module, name.text()?)?;
        out.set(f)
    }
    fn cuModuleGetGlobal_v2(s, address: Out<u64>, size: Out<usize>, module: Id, name: Text) {
        ready(s)?;
        let (at, n) = s.get_global(module, name.text()?)?;
        address.set_if(at);
        size.set_if(n as usize);
        Ok(())
    }
    fn cuFuncGetAttribute(s, out: Out<i32>, what: u32, f: Id) { out.set(function_attribute(s, f, what)?) }
    fn cuFuncSetAttribute(s, f: Id, what: u32, value: i32) {
        let (mut function, m, ..) = s.function(f)?;
        let fixed = m.at(function.index).ok_or(Code::INVALID_HANDLE)?.shared_static;
        match what {
            8 => {
                let most = s.options.shared().0.saturating_sub(fixed);
                let Some(value) = u32::try_from(value).ok().filter(|v| *v <= most) else {
                    return s.refuse(
                        Code::INVALID_VALUE,
                        format!("{value} bytes of dynamic shared memory, at most {most} can be opted in to"),
                    );
                };
                function.max_dynamic = value;
                s.functions.insert(f, function);
                Ok(())
            }
            9 => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }
    fn cuFuncSetCacheConfig(s, f: Id, _config: u32) { s.function(f).map(|_| ()) }
    fn cuFuncGetModule(s, out: Out<Id>, f: Id) { out.set(s.function(f)?.0.module) }
    fn cuFuncGetParamInfo(s, f: Id, index: usize, offset: Out<usize>, size: Out<usize>) {
        let (f, m, ..) = s.function(f)?;
        let p = m.at(f.index).and_then(|k| k.params.get(index)).ok_or(Code::INVALID_VALUE)?;
        offset.set(p.offset as usize)?;
        size.set_if(p.size as usize);
        Ok(())
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(s, out: Out<i32>, f: Id, threads: i32, dynamic: usize) {
        out.set(s.occupancy(f, threads.max(0) as u32, dynamic as u64)? as i32)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(s, out: Out<i32>, f: Id, threads: i32, dynamic: usize, _flags: u32) {
        out.set(s.occupancy(f, threads.max(0) as u32, dynamic as u64)? as i32)
    }
    fn cuOccupancyMaxPotentialBlockSize(s, grid: Out<i32>, block: Out<i32>, f: Id, by_block: usize, dynamic: usize, limit: i32) {
        let (g, b) = best_block(s, f, by_block, dynamic, limit)?;
        grid.set(g)?;
        block.set(b)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(s, grid: Out<i32>, block: Out<i32>, f: Id, by_block: usize, dynamic: usize, limit: i32, _flags: u32) {
        let (g, b) = best_block(s, f, by_block, dynamic, limit)?;
        grid.set(g)?;
        block.set(b)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(s, out: Out<usize>, f: Id, blocks: i32, _threads: i32) {
        let (function, m, ..) = s.function(f)?;
        let fixed = m.at(function.index).ok_or(Code::INVALID_HANDLE)?.shared_static;
        let each = s.options.shared().1 / blocks.max(1) as u32;
        out.set(each.min(s.shared_limit(&function, fixed)).saturating_sub(fixed) as usize)
    }

    // Launches.

    fn cuLaunchKernel(s, f: Id, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: u64, params: usize, extra: usize) {
        launch(s, f, [gx, gy, gz], [bx, by, bz], shared, stream, params, extra, false)
    }
    fn cuLaunchCooperativeKernel(s, f: Id, gx: u32, gy: u32, gz: u32, bx: u32, by: u32, bz: u32, shared: u32, stream: u64, params: usize) {
        launch(s, f, [gx, gy, gz], [bx, by, bz], shared, stream, params, 0, true)
    }
    fn cuLaunchKernelEx(s, config: In<LaunchConfig>, f: Id, params: usize, extra: usize) {
        let c = config.get()?;
        let mut cooperative = false;
        let attributes = In::from_raw(c.attributes);
        for i in 0..c.count as usize {
            let a: LaunchAttribute = attributes.nth(i)?;
            match a.id {
                // A priority, an order of streams and a carve-out change no result.
                0 | 3 | 6 | 8 | 14 => {}
                2 => cooperative = a.value[0] != 0,
                4 if a.value[..3] == [1, 1, 1] => {}
                other => return s.refuse(Code::NOT_SUPPORTED, format!("launch attribute {other} {MISSING}")),
            }
        }
        launch(s, f, c.grid, c.block, c.shared, c.stream, params, extra, cooperative)
    }

    // Graphs.

    fn cuGraphInstantiateWithFlags(s, out: Out<Id>, graph: Id, flags: u64) { instantiate(s, &out, graph, flags) }
    fn cuGraphInstantiate_v2(s, out: Out<Id>, graph: Id, error: Out<Id>, log: Out<u8>, room: usize) {
        error.set_if(0);
        log.set_all([0], room);
        instantiate(s, &out, graph, 0)
    }
    fn cuGraphInstantiateWithParams(s, out: Out<Id>, graph: Id, params: Out<[u64; 4]>) {
        let mut p = params.as_in().get()?;
        let done = instantiate(s, &out, graph, p[0]);
        (p[2], p[3]) = (0, u64::from(done.is_err()));
        params.set(p)?;
        done
    }
    fn cuGraphLaunch(s, exec: Id, stream: u64) {
        let ctx = ctx(s)?;
        let stream = s.stream(ctx, stream)?;
        s.launch_graph(exec, stream)
    }
    fn cuGraphUpload(s, exec: Id, stream: u64) {
        let ctx = ctx(s)?;
        s.stream(ctx, stream)?;
        if s.is_exec(exec) { Ok(()) } else { Err(Code::INVALID_HANDLE) }
    }
    fn cuGraphDestroy(s, graph: Id) { s.graphs.remove(&graph).map(|_| ()).ok_or(Code::INVALID_HANDLE) }
    fn cuGraphExecDestroy(s, exec: Id) { s.end_exec(exec) }
    fn cuGraphGetNodes(s, graph: Id, nodes: Out<Id>, count: Out<usize>) {
        let g = s.graphs.get(&graph).ok_or(Code::INVALID_HANDLE)?;
        if !nodes.is_null() {
            nodes.set_all(g.nodes.iter().map(|n| n.id), count.as_in().get()?);
        }
        count.set(g.nodes.len())
    }
    fn cuGraphNodeGetType(s, node: Id, out: Out<u32>) {
        out.set(match s.node(node)?.op {
            Op::Kernel(_) => 0,
            Op::Fill { .. } => 2,
            Op::Call { .. } => 3,
            Op::Nothing | Op::Record { .. } | Op::Free(_) | Op::Graph(_) => 5,
            _ => 1,
        })
    }
    fn cuGraphKernelNodeGetParams(s, node: Id, out: Out<KernelNode>) { out.set(node_params(s, node)?) }
    fn cuGraphKernelNodeGetParams_v2(s, node: Id, out: Out<[u64; 9]>) {
        let p = node_params(s, node)?;
        let pair = |a: u32, b: u32| u64::from(a) | u64::from(b) << 32;
        out.set([
            p.function,
            pair(p.grid[0], p.grid[1]),
            pair(p.grid[2], p.block[0]),
            pair(p.block[1], p.block[2]),
            u64::from(p.shared),
            0,
            0,
            0,
            current(),
        ])
    }
    fn cuGraphExecKernelNodeSetParams(s, exec: Id, node: Id, params: In<KernelNode>) { set_node(s, exec, node, params.get()?) }
    fn cuGraphExecKernelNodeSetParams_v2(s, exec: Id, node: Id, params: In<KernelNode>) { set_node(s, exec, node, params.get()?) }

    // What is not there.

    fn cuMemAllocManaged(s, _out: Out<u64>, _size: usize, _flags: u32) {
        s.refuse(Code::NOT_SUPPORTED, format!("managed memory {MISSING}"))
    }
    fn cuMemAdvise_v2(s, _at: u64, _size: usize, _advice: u32, _place: u64) {
        s.refuse(Code::NOT_SUPPORTED, format!("managed memory {MISSING}"))
    }
    fn cuMemPrefetchAsync_v2(s, _at: u64, _size: usize, _place: u64, _flags: u32, _stream: u64) {
        s.refuse(Code::NOT_SUPPORTED, format!("managed memory {MISSING}"))
    }
    fn cuStreamAttachMemAsync(s, _stream: u64, _at: u64, _len: usize, _flags: u32) {
        s.refuse(Code::NOT_SUPPORTED, format!("managed memory {MISSING}"))
    }
    fn cuImportExternalMemory(s, _out: Out<Id>, _desc: usize) {
        s.refuse(Code::NOT_SUPPORTED, format!("external memory {MISSING}"))
    }
    fn cuDestroyExternalMemory(s, _memory: Id) {
        s.refuse(Code::NOT_SUPPORTED, format!("external memory {MISSING}"))
    }
    fn cuExternalMemoryGetMappedBuffer(s, _out: Out<u64>, _memory: Id, _desc: usize) {
        s.refuse(Code::NOT_SUPPORTED, format!("external memory {MISSING}"))
    }
    fn cuOccupancyMaxActiveClusters(s, _out: Out<i32>, _f: Id, _config: usize) {
        s.refuse(Code::NOT_SUPPORTED, format!("clusters: cuOccupancyMaxActiveClusters {MISSING}"))
    }
    fn cuOccupancyMaxPotentialClusterSize(s, _out: Out<i32>, _f: Id, _config: usize) {
        s.refuse(Code::NOT_SUPPORTED, format!("clusters: cuOccupancyMaxPotentialClusterSize {MISSING}"))
    }
}

/// The block size that fills a multiprocessor best, and a grid that fills the device.
fn best_block(s: &State, f: Id, by_block: usize, dynamic: usize, limit: i32) -> R<(i32, i32)> {
    if by_block != 0 {
        return s.refuse(Code::NOT_SUPPORTED, "shared memory as a function of the block size");
    }
    let most = function_attribute(s, f, 0)?;
    let most = if limit > 0 { most.min(limit) } else { most };
    let mut best = (0, 0);
    for block in (1..=most / 32).rev().map(|w| w * 32) {
        let fit = s.occupancy(f, block as u32, dynamic as u64)? as i32;
        if fit * block > best.0 * best.1 {
            best = (fit, block);
        }
    }
    Ok((best.0 * s.options.multiprocessors as i32, best.1))
}
