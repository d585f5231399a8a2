//! The CUDA device that tests run on: the software device, or a GPU where one is asked for.
//!
//! | variable | meaning |
//! | --- | --- |
//! | (none) | the software device; where it does not run (it needs Linux), tests of CUDA say that they were skipped |
//! | `RECURVE_TEST_GPU=1` | the real driver and its first GPU, if there is a driver; else as above |
//! | `REQUIRE_GPU=1` | the real driver and its first GPU; without one, tests fail |

#![allow(dead_code)] // each test program uses its part

use recurve::backend::Ops as _;
use recurve::backend::cuda::{Cuda, CudaEngine, ImageChoice, LoadedImage};
use std::sync::OnceLock;

fn set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Makes the driver that the tests are to use the process's; false if there is none.
fn driver() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        if set("REQUIRE_GPU") {
            return true;
        }
        if set("RECURVE_TEST_GPU") {
            match recurve::backend::cuda::devices() {
                Err(recurve::backend::cuda::Missing::Driver) => {
                    println!("RECURVE_TEST_GPU=1, but there is no driver: the software device instead");
                }
                _ => return true,
            }
        }
        software()
    })
}

#[cfg(target_os = "linux")]
fn software() -> bool {
    softcuda::open().unwrap_or_else(|error| panic!("{error}"));
    true
}

#[cfg(not(target_os = "linux"))]
fn software() -> bool {
    println!("skipped: the software CUDA device needs Linux, and no GPU was asked for (RECURVE_TEST_GPU=1)");
    false
}

/// A device of its own for the caller, with this image; none where tests of CUDA are skipped.
pub fn open(choice: ImageChoice) -> Option<Cuda> {
    if !driver() {
        return None;
    }
    let cuda = Cuda::with_image(0, choice).unwrap_or_else(|error| panic!("{error}"));
    if set("REQUIRE_GPU") {
        assert!(!cuda.is_software(), "REQUIRE_GPU=1, but {} is no GPU", cuda.name());
    }
    Some(cuda)
}

/// One device for each PTX that this build holds: the committed one, and the built one where it differs; on a GPU also
/// the machine code, if that is what is loaded there.
pub fn images() -> &'static [Cuda] {
    static IMAGES: OnceLock<Vec<Cuda>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let mut all: Vec<Cuda> = Vec::new();
        for choice in [ImageChoice::Committed, ImageChoice::Built, ImageChoice::Best] {
            if let Some(cuda) = open(choice)
                && all.iter().all(|other| other.image() != cuda.image())
            {
                all.push(cuda);
            }
        }
        for cuda in &all {
            println!("tests of CUDA run on {}", cuda.name());
        }
        assert!(all.is_empty() || *all[0].image() == LoadedImage::CommittedPtx);
        all
    })
}

/// An engine for each image of [`images`], on a device of its own.
pub fn engines() -> Vec<CudaEngine> {
    let choice = |image: &LoadedImage| match image {
        LoadedImage::CommittedPtx => ImageChoice::Committed,
        LoadedImage::BuiltPtx => ImageChoice::Built,
        LoadedImage::Cubin(_) => ImageChoice::Best,
    };
    images().iter().filter_map(|cuda| open(choice(cuda.image()))).map(CudaEngine::new).collect()
}
