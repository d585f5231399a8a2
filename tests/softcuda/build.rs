//! Names the shared object `libcuda.so`, so that a program that opens the CUDA driver by this name finds the one opened before.
//! The file itself stays `libsoftcuda.so`: a file named `libcuda.so` in a build folder could shadow a real driver.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
}
