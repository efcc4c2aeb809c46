//! Where tasks run, what time it is and where chance comes from, for everything that replication does.
//!
//! On a node that is tokio. A simulator installs an [`Executor`] on its thread instead: then nothing here
//! touches tokio's runtime, a clock of the machine or a random source of the system. `docs/design/replication.md`
//! lists what is left that a seed does not decide.

mod channels;

use std::{
    cell::RefCell,
    convert::Infallible,
    fmt,
    future::Future,
    ops::{Add, AddAssign, Sub, SubAssign},
    pin::{Pin, pin},
    rc::Rc,
    sync::OnceLock,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use openraft::async_runtime::{AsyncRuntime, Instant};
use rand::TryRng;

/// A machine that runs tasks by itself: the simulator's side of [`Runtime`].
///
/// One thread; tasks that wake each other run in the order it chooses.
pub trait Executor: 'static {
    /// Time since the run began. Never goes back.
    fn now(&self) -> Duration;

    /// What the machine's wall clock says, in nanoseconds since the epoch. It may be wrong and may jump.
    fn wall(&self) -> u64;

    /// Runs a task until it ends or the run does. The name is for whoever asks what runs.
    fn spawn(&self, task: BoxFuture<'static, ()>, name: &'static str);

    /// Ready when [`Self::now`] reached `at`.
    fn sleep_until(&self, at: Duration) -> BoxFuture<'static, ()>;

    /// The next number of the run's random stream.
    fn random(&self) -> u64;
}

thread_local! {
    static EXECUTOR: RefCell<Option<Rc<dyn Executor>>> = const { RefCell::new(None) };
}

/// Makes this executor the one of this thread until the guard is dropped.
///
/// A simulator that runs several machines with clocks of their own installs the one whose task it polls.
#[must_use]
pub fn install(executor: Rc<dyn Executor>) -> Installed {
    Installed { before: EXECUTOR.replace(Some(executor)) }
}

/// An executor is installed on this thread while this lives.
pub struct Installed {
    before: Option<Rc<dyn Executor>>,
}

impl Drop for Installed {
    fn drop(&mut self) {
        EXECUTOR.replace(self.before.take());
    }
}

impl fmt::Debug for Installed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Installed")
    }
}

fn executor() -> Option<Rc<dyn Executor>> {
    EXECUTOR.with_borrow(Clone::clone)
}

/// The runtime of replication.
#[derive(Debug)]
pub struct Runtime {
    tokio: tokio::runtime::Runtime,
}

/// A moment of the monotonic clock: since the run began (simulated), or since this process first asked.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Moment(pub Duration);

static ANCHOR: OnceLock<tokio::time::Instant> = OnceLock::new();

fn anchor() -> tokio::time::Instant {
    *ANCHOR.get_or_init(tokio::time::Instant::now)
}

/// What time it is.
#[must_use]
pub fn now() -> Moment {
    match executor() {
        Some(executor) => Moment(executor.now()),
        None => {
            let anchor = anchor();
            Moment(tokio::time::Instant::now().saturating_duration_since(anchor))
        }
    }
}

/// What this machine's wall clock says, in nanoseconds since the epoch. Nothing but a quorum of them is believed.
#[must_use]
pub fn wall() -> u64 {
    match executor() {
        Some(executor) => executor.wall(),
        None => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        }
    }
}

/// Runs a task beside this one.
pub fn spawn<T>(task: impl Future<Output = T> + Send + 'static) -> Task<T>
where
    T: Send + 'static,
{
    let (done, result) = tokio::sync::oneshot::channel();
    let name = std::any::type_name_of_val(&task);
    let task = async move {
        // Nobody may wait for the result.
        done.send(task.await).ok();
    };
    match executor() {
        Some(executor) => executor.spawn(Box::pin(task), name),
        None => drop(tokio::spawn(task)),
    }
    Task { result }
}

/// Ready after `duration`.
#[must_use]
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration)
}

/// Ready at `at`.
#[must_use]
pub fn sleep_until(at: Moment) -> Sleep {
    match executor() {
        Some(executor) => Sleep(executor.sleep_until(at.0)),
        None => {
            let anchor = anchor();
            // A deadline beyond what the clock can say is never.
            let at = anchor.checked_add(at.0).unwrap_or_else(|| anchor + Duration::from_secs(1 << 32));
            Sleep(Box::pin(tokio::time::sleep_until(at)))
        }
    }
}

/// Waits for `future`, but not longer than `limit`.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T> + Send) -> Result<T, TimedOut> {
    Timeout { sleep: sleep(limit), future: pin!(future) }.await
}

/// Does what blocks where it holds up nobody: on a thread of its own, or at once in a simulator.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TaskGone> {
    if executor().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_panicked| TaskGone)
}

/// A number by chance.
#[must_use]
pub fn random() -> u64 {
    match executor() {
        Some(executor) => executor.random(),
        None => rand::Rng::next_u64(&mut rand::rng()),
    }
}

/// The end of a spawned task. Dropping it does not stop the task.
#[derive(Debug)]
pub struct Task<T> {
    result: tokio::sync::oneshot::Receiver<T>,
}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskGone>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(context).map(|result| result.map_err(|_gone| TaskGone))
    }
}

/// A task ended without a result: it panicked, or its runtime stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a task ended without a result")]
pub struct TaskGone;

/// See [`sleep`].
pub struct Sleep(BoxFuture<'static, ()>);

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sleep")
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

/// Something took longer than it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("timed out")]
pub struct TimedOut;

/// A future with a deadline. The future is asked first: what is ready at the deadline counts.
#[derive(Debug)]
pub struct Timeout<F> {
    sleep: Sleep,
    future: F,
}

impl<T, F: Future<Output = T> + Unpin> Future for Timeout<F> {
    type Output = Result<T, TimedOut>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = Pin::new(&mut self.future).poll(context) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(TimedOut))
    }
}

/// The random numbers of this thread, or of the run.
pub struct Chance(Option<Rc<dyn Executor>>);

impl fmt::Debug for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chance")
    }
}

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let [a, b, c, d, ..] = self.try_next_u64()?.to_le_bytes();
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        match &self.0 {
            Some(executor) => Ok(executor.random()),
            None => rand::rng().try_next_u64(),
        }
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(8) {
            let bytes = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(())
    }
}

impl Instant for Moment {
    fn now() -> Self {
        now()
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, more: Duration) -> Self {
        Self(self.0.saturating_add(more))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, more: Duration) {
        *self = *self + more;
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, less: Duration) -> Self {
        Self(self.0.saturating_sub(less))
    }
}

impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, less: Duration) {
        *self = *self - less;
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = TaskGone;
    type JoinHandle<T: Send + 'static> = Task<T>;
    type Sleep = Sleep;
    type Instant = Moment;
    type TimeoutError = TimedOut;
    type Timeout<R, T: Future<Output = R> + Send> = Timeout<Pin<Box<T>>>;
    type ThreadLocalRng = Chance;
    type Mpsc = channels::Mpsc;
    type Watch = channels::Watch;
    type Oneshot = channels::Oneshot;
    type Mutex<T: Send + 'static> = channels::Mutex<T>;

    fn spawn<T>(future: T) -> Task<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Sleep {
        sleep(duration)
    }

    fn sleep_until(deadline: Moment) -> Sleep {
        sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Timeout<Pin<Box<F>>> {
        Timeout { sleep: sleep(duration), future: Box::pin(future) }
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: Moment, future: F) -> Timeout<Pin<Box<F>>> {
        Timeout { sleep: sleep_until(deadline), future: Box::pin(future) }
    }

    fn is_panic(_gone: &TaskGone) -> bool {
        // Nothing stops a task but its own panic or the end of everything.
        true
    }

    fn thread_rng() -> Chance {
        Chance(executor())
    }

    /// For openraft's own tests of runtimes only.
    fn new(threads: usize) -> Self {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .expect("a test machine can start threads");
        Self { tokio }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.tokio.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use openraft::testing::runtime::Suite;

    use super::Runtime;

    #[test]
    fn openraft_accepts_the_runtime() {
        Suite::<Runtime>::test_all();
    }
}
