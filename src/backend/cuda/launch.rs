//! A kernel's arguments, checked as they are pushed.
//!
//! Each pointer is pushed with the dimensions that the kernel will index it by: so many elements have to lie behind it,
//! in this context's memory. Their number and sizes are compared with what the kernel's PTX declares. What is left to the
//! caller of [`Call::launch`] is the parameters' order, and that the dimensions pushed bound what the kernel touches.

use super::buffer::{View, ViewMut};
use super::context::Context;
use super::kernels::Kernel;
use crate::error::{Error, Result};
use crate::tuning::ELEMENT_FOURS;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::c_void;

/// The most parameters of any kernel.
const MOST: usize = 42;

/// What cudarc has for each way to launch a kernel.
type Launch = unsafe fn(
    sys::CUfunction,
    (u32, u32, u32),
    (u32, u32, u32),
    u32,
    sys::CUstream,
    &mut [*mut c_void],
) -> std::result::Result<(), DriverError>;

/// A kernel and its arguments so far.
pub(super) struct Call<'c> {
    ctx: &'c Context,
    kernel: &'c Kernel,
    /// Each argument's bytes from the first of its eight on.
    arguments: [[u8; 8]; MOST],
    /// Each argument's number of bytes.
    bytes: [u8; MOST],
    count: usize,
}

impl<'c> Call<'c> {
    /// A call of `kernel`.
    pub(super) fn new(ctx: &'c Context, kernel: &'c Kernel) -> Self {
        Self { ctx, kernel, arguments: [[0; 8]; MOST], bytes: [0; MOST], count: 0 }
    }

    fn push<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        // Every kernel has fewer parameters; a longer list would be a panic at its first launch in any test.
        self.arguments[self.count][..N].copy_from_slice(&bytes);
        self.bytes[self.count] = const { N as u8 };
        self.count += 1;
        self
    }

    fn pointer<T>(self, what: &'static str, view: &View<'_, T>, dims: &[usize]) -> Result<Self> {
        let n = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        match n.and_then(|n| view.address(self.ctx, n)) {
            Some(address) => Ok(self.push(address.to_ne_bytes())),
            None => Err(Error::Shape {
                op: self.kernel.name,
                what,
                expected: format!("{dims:?} elements of {}'s memory", self.ctx.label),
                found: format!("{}, or another context's", view.len()),
            }),
        }
    }

    /// An array that is read, of at least the product of `dims` elements.
    pub(super) fn input<T>(self, what: &'static str, view: View<'_, T>, dims: &[usize]) -> Result<Self> {
        self.pointer(what, &view, dims)
    }

    /// [`Self::input`] at a multiple of four elements: kernels read it by fours.
    pub(super) fn input_fours<T>(
        self,
        what: &'static str,
        view: View<'_, T>,
        dims: &[usize],
    ) -> Result<Self> {
        self.fours(what, &view)?.pointer(what, &view, dims)
    }

    /// [`Self::output`] at a multiple of four elements.
    pub(super) fn output_fours<T>(
        self,
        what: &'static str,
        view: &mut ViewMut<'_, T>,
        dims: &[usize],
    ) -> Result<Self> {
        self.fours(what, &view.view())?.pointer(what, &view.view(), dims)
    }

    fn fours<T>(self, what: &'static str, view: &View<'_, T>) -> Result<Self> {
        let bytes = 4 * size_of::<T>() as u64;
        match view.address(self.ctx, 0) {
            Some(address) if address % bytes != 0 => Err(Error::Shape {
                op: self.kernel.name,
                what,
                expected: format!("at a multiple of {bytes} bytes of device memory; please report this"),
                found: format!("at {address:#x}"),
            }),
            _ => Ok(self),
        }
    }

    /// [`Self::input`], or a null pointer.
    pub(super) fn input_or_null<T>(
        self,
        what: &'static str,
        view: Option<View<'_, T>>,
        dims: &[usize],
    ) -> Result<Self> {
        match view {
            Some(view) => self.pointer(what, &view, dims),
            None => Ok(self.null()),
        }
    }

    /// An array that is written (and perhaps read), of at least the product of `dims` elements.
    pub(super) fn output<T>(
        self,
        what: &'static str,
        view: &mut ViewMut<'_, T>,
        dims: &[usize],
    ) -> Result<Self> {
        self.pointer(what, &view.view(), dims)
    }

    /// [`Self::output`], or a null pointer.
    pub(super) fn output_or_null<T>(
        self,
        what: &'static str,
        view: Option<&mut ViewMut<'_, T>>,
        dims: &[usize],
    ) -> Result<Self> {
        match view {
            Some(view) => self.pointer(what, &view.view(), dims),
            None => Ok(self.null()),
        }
    }

    /// A null pointer.
    pub(super) fn null(self) -> Self {
        self.push(0u64.to_ne_bytes())
    }

    /// A size, which has to fit 32 bits.
    pub(super) fn size(self, what: &'static str, n: usize) -> Result<Self> {
        let n = size(self.kernel.name, what, n)?;
        Ok(self.u32(n))
    }

    /// A number of 32 bits.
    pub(super) fn u32(self, x: u32) -> Self {
        self.push(x.to_ne_bytes())
    }

    /// A number of 64 bits.
    pub(super) fn u64(self, x: u64) -> Self {
        self.push(x.to_ne_bytes())
    }

    /// A float.
    pub(super) fn f32(self, x: f32) -> Self {
        self.push(x.to_ne_bytes())
    }

    /// A double.
    pub(super) fn f64(self, x: f64) -> Self {
        self.push(x.to_ne_bytes())
    }

    /// Launches the kernel on the context's stream. A grid with a side of 0 has nothing to do and is not launched.
    ///
    /// # Safety
    /// The arguments are the kernel's parameters, in their order and of their types, and with these dimensions and
    /// this grid the kernel touches no element beyond what was checked when they were pushed.
    pub(super) unsafe fn launch(self, grid: [u32; 3], block: u32, shared_bytes: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_by(result::launch_kernel, grid, block, shared_bytes) }
    }

    /// Launches the kernel with all its blocks on the device at once, so that they may wait for each other; more blocks than
    /// the device has room for are an error of the driver.
    ///
    /// # Safety
    /// As for [`Self::launch`].
    pub(super) unsafe fn launch_together(self, grid: [u32; 3], block: u32, shared_bytes: u32) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_by(result::launch_cooperative_kernel, grid, block, shared_bytes) }
    }

    /// # Safety
    /// As for [`Self::launch`], and `launch` is a launch of the driver.
    unsafe fn launch_by(
        mut self,
        launch: Launch,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let (ctx, name) = (self.ctx, self.kernel.name);
        // A recording that lacks it is done again.
        let Some(function) = ctx.function(self.kernel)? else { return Ok(()) };
        // The driver reads as many arguments as the kernel has, of its sizes, whatever was pushed.
        let bytes = &self.bytes[..self.count];
        if bytes != function.parameters {
            return Err(Error::Failed(format!(
                "{name} takes parameters of {:?} bytes, and was given {bytes:?}; please report this",
                function.parameters
            )));
        }
        let fail = |error| ctx.error(&format!("launching {name}"), error);
        ctx.cuda.bind_to_thread().map_err(fail)?;
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST];
        for (pointer, argument) in pointers.iter_mut().zip(&mut self.arguments) {
            *pointer = argument.as_mut_ptr().cast();
        }
        // SAFETY: the function belongs to a module that `ctx` keeps loaded; the driver copies the arguments, which
        // live through the call, before it returns. The rest is the caller's promise.
        unsafe {
            launch(
                function.handle,
                grid.into(),
                (block, 1, 1),
                shared_bytes,
                ctx.stream.cu_stream(),
                &mut pointers[..self.count],
            )
        }
        .map_err(fail)
    }
}

/// A size as kernels take it.
pub(super) fn size(op: &'static str, what: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::Shape {
        op,
        what,
        expected: "below 2^32 (kernels count in 32 bits)".to_string(),
        found: n.to_string(),
    })
}

/// Elements of a block of `threads` threads that take `ELEMENT_FOURS` groups of four each.
pub(super) const fn fours(threads: u32) -> u32 {
    threads * 4 * ELEMENT_FOURS
}

/// The blocks of `per` elements each that cover `dims` elements: at most 2^31 − 1.
pub(super) fn blocks(op: &'static str, what: &'static str, dims: &[usize], per: u32) -> Result<u32> {
    let n = dims.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
    let blocks = n.map(|n| n.div_ceil(per as usize)).and_then(|blocks| i32::try_from(blocks).ok());
    blocks.map(i32::unsigned_abs).ok_or_else(|| Error::Shape {
        op,
        what,
        expected: format!("at most {per} times 2^31 elements; use a smaller batch"),
        found: format!("dimensions {dims:?}"),
    })
}
