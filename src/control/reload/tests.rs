use std::{cell::RefCell, fs, os::unix::fs::symlink, rc::Rc};

use tokio::time::{Instant, sleep_until};

use super::*;
use crate::{
    runtime::{drain::DrainHandle, stamp::tests::Folder},
    telemetry::metrics::{Name, Registry},
};

/// A reload task over one file, whose `apply` takes any text without "broken" in it.
struct Bench {
    folder: Folder,
    taken: Rc<RefCell<Vec<String>>>,
    status: ReloadStatus,
    registry: Registry,
    ask: mpsc::Sender<()>,
    begin: Instant,
}

impl Bench {
    /// Runs `act` beside the task.
    async fn run(name: &str, act: impl AsyncFnOnce(&Self)) {
        let (folder, registry) = (Folder::new(name), Registry::new());
        let file = folder.write("config", "one");
        let table = registry.table();
        let count = |result| table.counter(Name::Reloads, &[("result", result)]);
        let counts = Counts { applied: count("applied"), refused: count("refused") };
        let (ask, requests) = mpsc::channel(1);
        let (handle, drain) = DrainHandle::new();
        let bench = Self {
            folder,
            taken: Rc::default(),
            status: ReloadStatus::default(),
            registry,
            ask,
            begin: Instant::now(),
        };
        let taken = Rc::clone(&bench.taken);
        let apply = {
            let file = file.clone();
            move || {
                let text = fs::read_to_string(&file).unwrap_or_default();
                if !text.contains("broken") {
                    taken.borrow_mut().push(text.clone());
                }
                async move {
                    if text.contains("broken") { Err(vec!["line 1: broken".into()]) } else { Ok(Applied::default()) }
                }
            }
        };
        let task = Reload::new(vec![file], requests, bench.status.clone(), counts, apply);
        let act = async {
            act(&bench).await;
            handle.set(Phase::Draining);
        };
        tokio::join!(task.run(drain), act);
    }

    /// Waits until just after the look at this second.
    async fn second(&self, at: u64) {
        sleep_until(self.begin + Duration::from_millis(at * 1000 + 500)).await;
    }

    fn taken(&self) -> Vec<String> {
        self.taken.borrow().clone()
    }

    fn write(&self, text: &str) {
        self.folder.write("config", text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_taken_once() {
    Bench::run("reload-once", async |bench| {
        bench.second(1).await;
        assert!(bench.taken().is_empty(), "what is there at the start is in use already");
        bench.write("second");
        bench.second(6).await;
        assert_eq!(bench.taken(), ["second"]);
        // The same content in another file.
        fs::rename(bench.folder.write("other", "second"), bench.folder.0.join("config")).unwrap();
        bench.second(10).await;
        assert_eq!(bench.taken(), ["second"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_half_written_file_is_left_alone() {
    Bench::run("reload-half", async |bench| {
        for (second, text) in [(0, "hal"), (1, "half-wri"), (2, "half-written")] {
            bench.second(second).await;
            bench.write(text);
        }
        bench.second(3).await;
        assert!(bench.taken().is_empty());
        bench.second(4).await;
        assert_eq!(bench.taken(), ["half-written"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_file_keeps_the_old_one_and_says_why() {
    Bench::run("reload-broken", async |bench| {
        bench.write("broken!");
        bench.second(4).await;
        assert!(bench.taken().is_empty());
        let status = bench.status.get();
        assert_eq!((status.applied, status.refused, status.problems), (0, 1, vec!["line 1: broken".to_owned()]));
        assert!(bench.registry.render().contains("sluicegate_config_reloads_total{result=\"refused\"} 1\n"));
        bench.write("mended");
        bench.second(8).await;
        assert_eq!(bench.taken(), ["mended"]);
        assert!(bench.status.get().problems.is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_reloads_at_once_and_the_look_after_it_does_not() {
    Bench::run("reload-asked", async |bench| {
        bench.write("asked");
        bench.ask.send(()).await.unwrap();
        bench.second(0).await;
        assert_eq!(bench.taken(), ["asked"]);
        bench.second(5).await;
        assert_eq!(bench.taken(), ["asked"]);
        bench.ask.send(()).await.unwrap();
        bench.second(6).await;
        assert_eq!(bench.taken(), ["asked", "asked"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_swapped_symlink_is_a_change() {
    Bench::run("reload-link", async |bench| {
        let link = bench.folder.0.join("link");
        symlink(bench.folder.write("next", "two"), &link).unwrap();
        fs::rename(link, bench.folder.0.join("config")).unwrap();
        bench.second(4).await;
        assert_eq!(bench.taken(), ["two"]);
    })
    .await;
}
