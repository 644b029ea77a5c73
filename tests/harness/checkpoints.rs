//! The other end of a machine process's checkpoints: stops it in one chosen state until it is let go.

use std::path::{Path, PathBuf};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
};

/// Serves a checkpoint socket.
pub struct Checkpoints {
    path: PathBuf,
    trap: watch::Sender<Option<String>>,
    caught: mpsc::UnboundedReceiver<UnixStream>,
}

impl Checkpoints {
    pub fn serve(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (trap, _) = watch::channel(None::<String>);
        let (sender, caught) = mpsc::unbounded_channel();
        let wanted = trap.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (wanted, sender) = (wanted.clone(), sender.clone());
                tokio::spawn(async move {
                    let mut reader = BufReader::new(stream);
                    let mut line = String::new();
                    if reader.read_line(&mut line).await.is_err() {
                        return;
                    }
                    // The first to enter the wanted state springs the trap; everyone else passes.
                    let springs =
                        wanted.send_if_modified(|wanted| wanted.take_if(|wanted| *wanted == line.trim()).is_some());
                    let mut stream = reader.into_inner();
                    if springs {
                        let _ = sender.send(stream);
                    } else {
                        let _ = stream.write_all(b"\n").await;
                    }
                });
            }
        });
        Self { path: path.to_owned(), trap, caught }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops the next process that enters `side state`.
    pub fn set(&self, place: &str) {
        self.trap.send_replace(Some(place.to_owned()));
    }

    pub fn clear(&self) {
        self.trap.send_replace(None);
    }

    /// Waits until the trap springs.
    pub async fn sprung(&mut self) -> Held {
        Held(self.caught.recv().await)
    }
}

/// A process that stands at its checkpoint.
pub struct Held(Option<UnixStream>);

impl Held {
    pub async fn let_go(mut self) {
        if let Some(stream) = &mut self.0 {
            // It may have been killed meanwhile.
            let _ = stream.write_all(b"\n").await;
        }
    }
}
