pub mod demo;
pub mod sim;
