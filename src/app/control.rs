//! control
use super::*;
pub(super) struct Control {
    pub shared: Arc<Shared>,
    pub configs: watch::Sender<Arc<Config>>,
    pub drain: DrainHandle,
    pub orders: mpsc::Receiver<Signal>,
    pub refreshes: mpsc::Receiver<Refresh>,
    pub stop: Stop,
    pub options: Options,
}
impl Control {
    pub fn run(self, _: Option<Socket>) -> Result<(), AppError> {
        loop {
            std::thread::park()
        }
    }
}
