// A range input that tells the page of a step only when a person has moved it. What a person does is not undone by a tick
// that was drawn before the page heard of it.
export default function ({ data, parentElement, setTriggerValue }) {
  const slider = parentElement.querySelector('input')
  const output = parentElement.querySelector('output')
  const show = () => {
    output.textContent = slider.value
    slider.setAttribute('aria-valuetext', `step ${slider.value} of ${data.total}`)
  }
  slider.disabled = data.last === 0
  slider.max = data.total
  if (slider.sent === data.heard) slider.sent = null
  if (!slider.held && !slider.sent) slider.value = data.step
  show()
  slider.oninput = () => { slider.moved = slider.held = true; show() }
  slider.onpointerup = slider.onblur = () => { slider.held = false }
  slider.onchange = () => {
    slider.held = false
    if (!slider.moved) return
    slider.moved = false
    if (Number(slider.value) > data.last) slider.value = data.last
    show()
    slider.sent = Math.random()
    setTriggerValue('moved', { step: Number(slider.value), nonce: slider.sent })
  }
}
