// Questions to the routes beside this file.

export const LATEST = Number.MAX_SAFE_INTEGER;

export async function ask(route, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, one);
  }
  let response;
  try {
    response = await fetch(`./${route}?${query}`, { signal });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Error("TensorBoard does not answer. Is it still running? This page keeps asking.");
  }
  let answer = null;
  try {
    answer = await response.json();
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
  }
  if (!response.ok || answer === null) throw new Error(answer?.error ?? `${route}: TensorBoard answered ${response.status}.`);
  return answer;
}
