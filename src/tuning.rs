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
    /// Threads of a block of kernels that give each thread an element.
    ELEMENT_THREADS = 256;
    /// Groups of four elements that a thread of them takes, where it takes several.
    ELEMENT_FOURS = 4;

    /// Threads of the block that sorts a step's tokens.
    SORT_THREADS = 512;
    /// Rows of the embedding table that a block of `embedding_backward` owns.
    EMBEDDING_ROWS = 64;
    /// Threads of a block of `embedding_backward`; each chunk of tokens is four a thread.
    EMBEDDING_THREADS = 256;

    /// Side of a block's tile of a matrix product.
    GEMM_TILE = 64;
    /// Rows of a tile of a product of many tiles.
    GEMM_TALL = 128;
    /// Columns of a tile of a product that has no more.
    GEMM_NARROW = 16;
    /// Elements of the summed dimension that pass through shared memory at a time.
    GEMM_K = 16;
    /// Threads of a block of a matrix product: 4 by 4 elements each.
    GEMM_THREADS = 256;
    /// Threads of a block of `column_sums`, a column each.
    COLUMN_THREADS = 64;

    /// Batch rows of a block of the LSTM cell.
    CELL_ROWS = 32;
    /// Hidden units of a block of the LSTM cell.
    CELL_UNITS = 16;
    /// Threads of a block of the LSTM cell: two rows of a unit each.
    CELL_THREADS = 256;

    /// Rows of U that the sequence kernels for 128 units keep out of the registers, so that 512 threads fit a multiprocessor.
    SEQUENCE_STREAMED = 56;
    /// Most blocks, and so most partial sums, of the backward pass over a sequence.
    SEQUENCE_PARTIALS = 512;

    /// Words from one of the counters that blocks wait for to the next: a line of memory each.
    SIGNAL_PITCH = 32;
    /// Hidden units of a block of the persistent LSTM kernels.
    PERSISTENT_UNITS = 16;

    /// Warps of a block of the dense and cross-entropy kernels, an output or a row each.
    DENSE_WARPS = 8;
    /// Threads of the one block that adds up loss and accuracy.
    METRIC_THREADS = 256;
    /// Batches whose means it holds at a time.
    METRIC_BATCHES = 1024;

    /// Threads of a block of Adam.
    ADAM_THREADS = 256;
    /// Columns of the embedding table that a block of Adam takes.
    EMBEDDING_TILE = 64;
    /// Groups of four numbers of tokens' gradients that a block of Adam holds in shared memory.
    STAGED_QUADS = 1024;
    /// Blocks of the norm of the gradient, and so its partial sums.
    NORM_BLOCKS = 128;

    /// The scale of f16's loss, before a step has been skipped: the most that it ever grows to.
    LOSS_SCALE_MOST = 65536;
    /// Steps in a row without a skipped one that double a smaller scale.
    LOSS_SCALE_GROWTH_STEPS = 2000;
}
