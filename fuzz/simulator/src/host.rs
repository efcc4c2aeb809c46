//! What a peer asks is answered on the machine that was asked: by its clocks, as long as it lives and does not stand still.

use std::sync::Arc;

use beamlog_net::peer::{BoxFuture, Introduction, Lane, PeerHandler, PeerId, Refusal, Session};
use beamlog_net::runtime;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

struct Question {
    from: PeerId,
    lane: Lane,
    request: Bytes,
    answer: oneshot::Sender<Result<Bytes, Refusal>>,
}

/// The handler of a machine, for whoever is on another one.
pub struct Host {
    handler: Arc<dyn PeerHandler>,
    questions: mpsc::UnboundedSender<Question>,
}

impl Host {
    /// Must be called by a task of the machine.
    pub fn begin(handler: Arc<dyn PeerHandler>) -> Arc<Self> {
        // Not bounded: each caller waits for its answer.
        let (questions, mut asked) = mpsc::unbounded_channel::<Question>();
        let answering = Arc::clone(&handler);
        drop(runtime::spawn(async move {
            while let Some(Question { from, lane, request, answer }) = asked.recv().await {
                let answered = answering.call(from, lane, request);
                drop(runtime::spawn(async move {
                    // Who asked may not wait any more.
                    drop(answer.send(answered.await));
                }));
            }
        }));
        Arc::new(Self { handler, questions })
    }
}

impl PeerHandler for Host {
    fn call(&self, from: PeerId, lane: Lane, request: Bytes) -> BoxFuture<'static, Result<Bytes, Refusal>> {
        let (answer, answered) = oneshot::channel();
        // Nobody answers when the machine is dead: the caller's session ends too.
        drop(self.questions.send(Question { from, lane, request, answer }));
        let gone = || Refusal { code: 0, reason: "the process is gone".to_owned() };
        Box::pin(async move { answered.await.unwrap_or_else(|_gone| Err(gone())) })
    }

    fn received(&self, from: Session, lane: Lane, frame: Bytes) {
        self.handler.received(from, lane, frame);
    }

    fn admit(&self, peer: &Introduction) -> Result<(), Refusal> {
        self.handler.admit(peer)
    }

    fn connected(&self, session: Session, peer: &Introduction) {
        self.handler.connected(session, peer);
    }

    fn disconnected(&self, session: Session) {
        self.handler.disconnected(session);
    }
}
