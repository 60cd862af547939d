// A React hook for one topic: its last messages, the number of its members and the state of the subscription.
import { useEffect, useState } from "react";

const EMPTY = { messages: [], members: null, state: "pending", gaps: 0, error: null };

/**
 * Subscribes to `topic` while the component is mounted.
 *
 * gateway: a Gateway of gateway.js, shared by the page. keep: the number of messages to keep.
 */
export function useTopic(gateway, topic, keep = 100) {
  const [view, setView] = useState(EMPTY);

  useEffect(() => {
    setView(EMPTY);
    const update = (change) => setView((view) => ({ ...view, ...change(view) }));
    const subscription = gateway.subscribe(topic, {
      onData: (message) => update((view) => ({ messages: [...view.messages, message].slice(-keep) })),
      onPresence: ({ count }) => update(() => ({ members: count })),
      onGap: () => update((view) => ({ gaps: view.gaps + 1 })),
      onState: (state, error) => update(() => ({ state, error })),
    });
    subscription.ready.catch(() => {}); // `error` has the reason
    return () => subscription.close();
  }, [gateway, topic, keep]);

  return view;
}
