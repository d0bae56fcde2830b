#[derive(Clone, Copy, Debug)]
pub enum Signal {
    Terminate,
    Reload,
}
