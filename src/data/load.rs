//! stub
/// stub
pub struct DataOptions;
/// stub
pub struct Dataset;
/// stub
pub struct Source;
/// stub
pub fn load() {}
