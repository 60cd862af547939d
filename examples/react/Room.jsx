// A room: its messages, the number of its members, and a line to write in.
import { useState } from "react";
import { useTopic } from "./useTopic.js";

export function Room({ gateway, topic }) {
  const { messages, members, state, gaps, error } = useTopic(gateway, topic);
  const [text, setText] = useState("");
  const [failure, setFailure] = useState("");

  async function send(event) {
    event.preventDefault();
    try {
      await gateway.publish(topic, { text });
      setText("");
      setFailure("");
    } catch (reason) {
      setFailure(reason.message);
    }
  }

  return (
    <section data-state={state}>
      <h1>{topic}</h1>
      <p>{members === null ? "" : `${members} here`}</p>
      {gaps > 0 && <p role="alert">Messages may be missing: reload the page.</p>}
      {error && <p role="alert">{error.message}</p>}
      <ol>
        {messages.map(({ data, epoch, offset }) => <li key={`${epoch}.${offset}`}>{data.text}</li>)}
      </ol>
      <form onSubmit={send}>
        <input value={text} onChange={(event) => setText(event.target.value)} aria-label="Message" />
        <button>Send</button>
      </form>
      <output>{failure}</output>
    </section>
  );
}
