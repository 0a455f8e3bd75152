// The workloads of ../README.md on Restate's TypeScript SDK: node restate_app.js PORT
Promise.withResolvers ??= () => {
    // the SDK expects it; Node has it from version 22 on
    const made = {};
    made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
    return made;
};
const http2 = require("node:http2");
const restate = require("@restatedev/restate-sdk");

const payload = { text: "x".repeat(89) }; // 100 bytes of JSON

function steps(count) {
    return async (ctx) => {
        let value = payload;
        for (let i = 0; i < count; i++) {
            const input = value;
            value = await ctx.run("echo", () => input);
        }
        return count;
    };
}

const workflow = restate.service({ name: "steps", handlers: { run100: steps(100), run3: steps(3) } });

const counter = restate.object({
    name: "counter",
    handlers: {
        add: async (ctx, amount) => {
            const sum = ((await ctx.get("sum")) ?? 0) + amount;
            ctx.set("sum", sum);
            return sum;
        },
    },
});

const handler = restate.createEndpointHandler({ services: [workflow, counter] });
http2.createServer(handler).listen(Number(process.argv[2]), "127.0.0.1");
