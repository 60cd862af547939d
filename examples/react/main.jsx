// One Gateway serves the whole page; components subscribe with useTopic.
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Gateway } from "websocket-gateway-client";
import { Room } from "./Room.jsx";

const getToken = async () => {
  const answer = await fetch("/gateway-token"); // of your back end: docs/how-to/log-in-users.md
  return answer.ok ? answer.text() : null;
};
const gateway = new Gateway(document.body.dataset.gateway ?? "/ws", { getToken });
gateway.connect().catch((error) => console.warn(error.message));

createRoot(document.getElementById("app")).render(
  <StrictMode>
    <Room gateway={gateway} topic="room:42" />
  </StrictMode>,
);
