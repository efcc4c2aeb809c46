//! One timer for all connections: pings, stale connections, authentication in time, idle memory.
//!
//! A timer per connection would cost each read; a pass over all of them now and then does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Context;
use crate::protocol::Violation;
use crate::session::{CloseReason, Connection};

/// As nats-server: the first PING of a client comes early, to learn its round trip.
const FIRST_PING: Duration = Duration::from_secs(2);
const TICK_MAX: Duration = Duration::from_millis(500);
/// A connection that said nothing for this long gives its spare buffers back.
const IDLE: Duration = Duration::from_secs(5);

pub(super) async fn keep(context: Arc<Context>) {
    let options = &context.options;
    let tick =
        (options.ping_interval / 4).min(options.auth_timeout / 4).clamp(Duration::from_millis(10), TICK_MAX);
    loop {
        // Nothing to keep: sleep until somebody comes.
        let connections = context.living();
        if connections.is_empty() {
            context.arrival.notified().await;
        }
        for connection in connections {
            attend(&context, &connection, Instant::now());
        }
        tokio::time::sleep(tick).await;
    }
}

fn attend(context: &Context, connection: &Connection, now: Instant) {
    let options = &context.options;
    let age = now.duration_since(connection.started);
    if options.auth.is_required()
        && connection.guest.is_none()
        && !connection.input.connected.load(Ordering::Acquire)
    {
        if age >= options.auth_timeout {
            connection.close(CloseReason::Violation(Violation::AuthenticationTimeout));
        }
        return;
    }
    connection.tidy(&context.interest);
    let active = Duration::from_millis(connection.input.active_millis.load(Ordering::Relaxed));
    if age.saturating_sub(active) >= IDLE {
        connection.shrink();
    }
    let sent = Duration::from_micros(connection.pings.sent_micros.load(Ordering::Relaxed));
    let due = if sent.is_zero() {
        FIRST_PING.min(options.ping_interval)
    } else {
        // Who talks is alive: the interval begins with the last word.
        sent.max(active) + options.ping_interval
    };
    if age < due {
        return;
    }
    if connection.pings.outstanding.load(Ordering::Relaxed) >= options.ping_max {
        connection.close(CloseReason::Violation(Violation::Stale));
    } else {
        connection.ping();
    }
}
