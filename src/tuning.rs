//! Launch constants: written once here, used by the launches as `tuning::NAME` and by the kernels as `NAME`.
//!
//! The build script reads this very file and hands every constant to NVRTC as `-DNAME=VALUE`; a kernel refuses to
//! compile without it. A change makes the committed PTX stale: `scripts/ptx` renews it.

/// Declares the constants and the list that the build script reads.
macro_rules! launch_constants {
    ($($(#[$doc:meta])+ $name:ident = $value:expr;)+) => {
        $($(#[$doc])+ pub const $name: u32 = $value;)+

        /// Every constant's name and value, as the kernels get them.
        pub const DEFINES: &[(&str, u32)] = &[$((stringify!($name), $name)),+];
    };
}

launch_constants! {
    /// Threads of a block of `fill`.
    FILL_THREADS = 256;
}
