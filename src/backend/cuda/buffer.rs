//! Memory of a device: arrays, views of them, and the pinned host memory through which everything comes and goes.

use super::context::Context;
use crate::backend::Extent;
use crate::error::{Error, Result};
use bytemuck::Pod;
use cudarc::driver::{CudaEvent, CudaSlice, DevicePtr as _, PinnedHostSlice, result, sys};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::PoisonError;

/// Bytes of one block of pinned memory.
const BLOCK_BYTES: usize = 1 << 18;
/// Blocks of pinned memory: so many copies may be under way before the next has to wait for the first.
const BLOCKS: usize = 4;

/// An array on the device. What it holds at first is undefined.
#[derive(Debug)]
pub(super) struct DeviceVec<T> {
    // Owns the memory; bytes, so that any plain type may lie in it. Never of size 0, which the driver refuses.
    memory: CudaSlice<u8>,
    address: sys::CUdeviceptr,
    len: usize,
    home: usize,
    of: PhantomData<T>,
}

/// `&[T]` on the device.
#[derive(Debug)]
pub(super) struct View<'a, T> {
    address: sys::CUdeviceptr,
    len: usize,
    /// The context it belongs to.
    home: usize,
    of: PhantomData<&'a [T]>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

/// `&mut [T]` on the device.
#[derive(Debug)]
pub(super) struct ViewMut<'a, T> {
    view: View<'a, T>,
    of: PhantomData<&'a mut [T]>,
}

/// A view's range that does not lie in it: a mistake in this crate, but not one to go on from.
fn outside(range: &Range<usize>, len: usize) -> Error {
    Error::Failed(format!("a view {range:?} of a device array of {len} elements; please report this"))
}

impl<'a, T> View<'a, T> {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A part of it.
    pub(super) fn part(self, range: Range<usize>) -> Result<View<'a, T>> {
        if range.start > range.end || range.end > self.len {
            return Err(outside(&range, self.len));
        }
        Ok(Self {
            address: self.address + (range.start * size_of::<T>()) as sys::CUdeviceptr,
            len: range.end - range.start,
            ..self
        })
    }

    /// The address, if at least `n` elements of this context's memory lie behind it.
    pub(super) fn address(&self, ctx: &Context, n: usize) -> Option<sys::CUdeviceptr> {
        (self.home == ctx.home() && n <= self.len).then_some(self.address)
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.view.len
    }

    /// To read from, while this view is not written to.
    pub(super) fn view(&self) -> View<'_, T> {
        self.view
    }

    /// The same view for a shorter time.
    pub(super) fn again(&mut self) -> ViewMut<'_, T> {
        ViewMut { view: self.view, of: PhantomData }
    }

    /// A part of it.
    pub(super) fn part(self, range: Range<usize>) -> Result<ViewMut<'a, T>> {
        Ok(ViewMut { view: self.view.part(range)?, of: PhantomData })
    }

    /// Everything before `at`, and the rest.
    pub(super) fn split(self, at: usize) -> Result<(ViewMut<'a, T>, ViewMut<'a, T>)> {
        let len = self.len();
        let (front, back) = (self.view.part(0..at)?, self.view.part(at..len)?);
        Ok((ViewMut { view: front, of: PhantomData }, ViewMut { view: back, of: PhantomData }))
    }
}

impl<T: Pod> DeviceVec<T> {
    /// Room for `len` elements; `what` names it if there is no memory.
    pub(super) fn new(ctx: &Context, what: &str, len: usize) -> Result<Self> {
        let too_much = |bytes: Option<usize>| {
            let asked = bytes.map_or("more than an address space".to_string(), in_words);
            let free = match ctx.cuda.mem_get_info() {
                Ok((free, total)) => format!("{} of {} are free", in_words(free), in_words(total)),
                Err(_) => format!("the device has {}", in_words(ctx.memory)),
            };
            Error::device(
                &ctx.label,
                format!(
                    "out of memory: {asked} were asked for, to hold {what}; {free}; use a smaller batch, close other \
                     programs on the GPU, or use --device cpu"
                ),
            )
        };
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
        let bytes = bytes.ok_or_else(|| too_much(None))?;
        // SAFETY: the memory is never read before it is written: every array is assigned by a copy or a kernel
        // first, and plain bytes have no invalid values.
        let memory = unsafe { ctx.stream.alloc::<u8>(bytes.max(1)) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => too_much(Some(bytes)),
            _ => ctx.error(&format!("allocating {what}"), error),
        })?;
        // The guard orders this use among several streams, of which there is one.
        let (address, _guard) = memory.device_ptr(&ctx.stream);
        Ok(Self {
            address,
            len,
            home: ctx.home(),
            of: PhantomData,
            memory: {
                drop(_guard);
                memory
            },
        })
    }

    /// A copy of `values`.
    pub(super) fn from_slice(ctx: &Context, what: &str, values: &[T]) -> Result<Self> {
        let mut array = Self::new(ctx, what, values.len())?;
        upload(ctx, what, array.view_mut(), values)?;
        Ok(array)
    }

    /// Elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All of it, to read.
    pub(super) fn view(&self) -> View<'_, T> {
        debug_assert!(self.memory.len() >= self.len * size_of::<T>());
        View { address: self.address, len: self.len, home: self.home, of: PhantomData }
    }

    /// All of it, to write.
    pub(super) fn view_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { view: self.view(), of: PhantomData }
    }

    /// The first `n` elements, to read.
    pub(super) fn front(&self, n: usize) -> Result<View<'_, T>> {
        self.view().part(0..n)
    }

    /// The first `n` elements, to write.
    pub(super) fn front_mut(&mut self, n: usize) -> Result<ViewMut<'_, T>> {
        self.view_mut().part(0..n)
    }
}

/// A number of bytes as people write it.
fn in_words(bytes: usize) -> String {
    let size = bytes as f64;
    match bytes {
        0..0x400 => format!("{bytes} bytes"),
        0x400..0x10_0000 => format!("{:.1} KiB", size / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", size / 1024.0 / 1024.0),
        _ => format!("{:.1} GiB", size / 1024.0 / 1024.0 / 1024.0),
    }
}

/// Pinned host memory in blocks, each with the event after which it may be overwritten.
#[derive(Debug)]
pub(super) struct Staging {
    blocks: Vec<(PinnedHostSlice<u8>, CudaEvent)>,
    next: usize,
    /// For copies to the host, which are waited for one by one.
    back: PinnedHostSlice<u8>,
}

impl Staging {
    fn new(ctx: &Context) -> Result<Self> {
        let fail = |error| ctx.error("allocating pinned memory", error);
        let block = || {
            // SAFETY: bytes have no invalid values, and are only read after they were written.
            let memory = unsafe { ctx.cuda.alloc_pinned::<u8>(BLOCK_BYTES) }.map_err(fail)?;
            Ok((memory, ctx.cuda.new_event(None).map_err(fail)?))
        };
        let blocks = (0..BLOCKS).map(|_| block()).collect::<Result<_>>()?;
        Ok(Self { blocks, next: 0, back: pinned_to_read(ctx, BLOCK_BYTES)? })
    }
}

/// Pinned memory that the host reads: not write-combined, in which reads are slow.
pub(super) fn pinned_to_read(ctx: &Context, bytes: usize) -> Result<PinnedHostSlice<u8>> {
    // SAFETY: bytes have no invalid values, and are only read after the device has written them.
    let memory = unsafe { ctx.cuda.alloc_pinned_with_flags::<u8>(bytes, 0) };
    memory.map_err(|error| ctx.error("allocating pinned memory", error))
}

/// Copies `values` to the front of `to`, through pinned memory, without waiting for the device unless all blocks are
/// under way. `values` may be dropped afterwards.
pub(super) fn upload<T: Pod>(ctx: &Context, what: &str, to: ViewMut<'_, T>, values: &[T]) -> Result<()> {
    let fail = |error| ctx.error(&format!("copying {what} to the device"), error);
    let Some(address) = to.view().address(ctx, values.len()) else {
        return Err(outside(&(0..values.len()), to.len()));
    };
    let bytes: &[u8] = bytemuck::cast_slice(values);
    if bytes.is_empty() {
        return Ok(());
    }
    let mut staging = ctx.staging.lock().unwrap_or_else(PoisonError::into_inner);
    let staging = match &mut *staging {
        Some(staging) => staging,
        empty => empty.insert(Staging::new(ctx)?),
    };
    ctx.cuda.bind_to_thread().map_err(fail)?;
    for (index, chunk) in bytes.chunks(BLOCK_BYTES).enumerate() {
        let (memory, done) = &mut staging.blocks[staging.next];
        staging.next = (staging.next + 1) % BLOCKS;
        // What was in this block has to have left it.
        done.synchronize().map_err(fail)?;
        let part = &mut memory.as_mut_slice().map_err(fail)?[..chunk.len()];
        part.copy_from_slice(chunk);
        let to = address + (index * BLOCK_BYTES) as sys::CUdeviceptr;
        // SAFETY: `address` holds `values.len()` elements, of which these bytes are a part; the block is not
        // written again before `done`, which is recorded next, has come.
        unsafe { result::memcpy_htod_async(to, part, ctx.stream.cu_stream()) }.map_err(fail)?;
        done.record(&ctx.stream).map_err(fail)?;
    }
    Ok(())
}

/// Copies `from` to the host, after everything asked for before.
pub(super) fn download<T: Pod>(ctx: &Context, what: &str, from: View<'_, T>) -> Result<Vec<T>> {
    let fail = |error| ctx.error(&format!("copying {what} from the device"), error);
    let Some(address) = from.address(ctx, from.len()) else {
        return Err(outside(&(0..from.len()), 0));
    };
    let mut values = vec![T::zeroed(); from.len()];
    let mut staging = ctx.staging.lock().unwrap_or_else(PoisonError::into_inner);
    let staging = match &mut *staging {
        Some(staging) => staging,
        empty => empty.insert(Staging::new(ctx)?),
    };
    ctx.cuda.bind_to_thread().map_err(fail)?;
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
    for (index, chunk) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
        let from = address + (index * BLOCK_BYTES) as sys::CUdeviceptr;
        let part = &mut staging.back.as_mut_slice().map_err(fail)?[..chunk.len()];
        // SAFETY: `address` holds `from.len()` elements, of which these bytes are a part; the block is waited for
        // before it is read.
        unsafe { result::memcpy_dtoh_async(part, from, ctx.stream.cu_stream()) }.map_err(fail)?;
        ctx.stream.synchronize().map_err(fail)?;
        chunk.copy_from_slice(&staging.back.as_slice().map_err(fail)?[..chunk.len()]);
    }
    Ok(values)
}

/// Copies `from` to the front of `to` on the device.
pub(super) fn copy<T: Pod>(ctx: &Context, what: &str, from: View<'_, T>, to: ViewMut<'_, T>) -> Result<()> {
    let fail = |error| ctx.error(&format!("copying {what} on the device"), error);
    let n = from.len();
    if n == 0 {
        return Ok(());
    }
    let (Some(source), Some(target)) = (from.address(ctx, n), to.view().address(ctx, n)) else {
        return Err(outside(&(0..n), to.len()));
    };
    ctx.cuda.bind_to_thread().map_err(fail)?;
    // SAFETY: both hold `n` elements, and a view to write to overlaps no other view.
    unsafe { result::memcpy_dtod_async(target, source, n * size_of::<T>(), ctx.stream.cu_stream()) }
        .map_err(fail)
}

/// Makes every byte of `to` zero.
pub(super) fn clear<T: Pod>(ctx: &Context, what: &str, to: ViewMut<'_, T>) -> Result<()> {
    set_bytes(ctx, what, to, 0)
}

/// Makes every byte of `to` this one.
pub(super) fn set_bytes<T: Pod>(ctx: &Context, what: &str, to: ViewMut<'_, T>, byte: u8) -> Result<()> {
    let fail = |error| ctx.error(&format!("clearing {what} on the device"), error);
    let n = to.len();
    if n == 0 {
        return Ok(());
    }
    let Some(address) = to.view().address(ctx, n) else {
        return Err(outside(&(0..n), 0));
    };
    ctx.cuda.bind_to_thread().map_err(fail)?;
    // SAFETY: `address` holds `n` elements, and any bytes are a value of every plain type.
    unsafe { result::memset_d8_async(address, byte, n * size_of::<T>(), ctx.stream.cu_stream()) }
        .map_err(fail)
}

/// A float array on a device.
#[derive(Debug)]
pub struct CudaBuffer(pub(super) DeviceVec<f32>);

impl CudaBuffer {
    pub(super) fn view(&self) -> View<'_, f32> {
        self.0.view()
    }

    pub(super) fn view_mut(&mut self) -> ViewMut<'_, f32> {
        self.0.view_mut()
    }
}

impl Extent for CudaBuffer {
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Ids or labels on a device, whose largest is known.
#[derive(Debug)]
pub struct CudaIds {
    array: DeviceVec<u32>,
    /// The largest id, and where it stands first.
    largest: Option<(u32, usize)>,
}

impl CudaIds {
    /// A copy of `ids`.
    pub(super) fn new(ctx: &Context, ids: &[u32]) -> Result<Self> {
        let mut largest: Option<(u32, usize)> = None;
        for (index, &id) in ids.iter().enumerate() {
            if largest.is_none_or(|(most, _)| id > most) {
                largest = Some((id, index));
            }
        }
        Ok(Self { array: DeviceVec::from_slice(ctx, "ids", ids)?, largest })
    }

    /// The ids, all of them below `limit`, the extent of the axis that they index.
    pub(super) fn below(&self, op: &'static str, what: &'static str, limit: usize) -> Result<Ids<'_>> {
        match self.largest {
            Some((id, index)) if id as usize >= limit => Err(Error::Shape {
                op,
                what,
                expected: format!("below {limit} at every index"),
                found: format!("{id} at index {index}"),
            }),
            _ => Ok(Ids { view: self.array.view(), below: limit }),
        }
    }
}

impl Extent for CudaIds {
    fn len(&self) -> usize {
        self.array.len()
    }
}

/// Ids that were compared with their limit before they came to the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids<'a> {
    pub(super) view: View<'a, u32>,
    /// Every id is below this.
    pub(super) below: usize,
}
